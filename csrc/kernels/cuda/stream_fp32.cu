#include "kernels/cuda/stream.cuh"

namespace cac::cuda {

StreamVariant float32_variant(int channels, StreamKind kind, bool gradient) {
  return select_variant<Float32Arithmetic>(channels, kind, gradient);
}

}  // namespace cac::cuda
