#include "kernels/cuda/stream.cuh"

namespace cac::cuda {

StreamVariant float16_variant(int channels, StreamKind kind, bool gradient) {
  return select_variant<Float16Arithmetic>(channels, kind, gradient);
}

}  // namespace cac::cuda
