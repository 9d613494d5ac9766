#include "kernels/cuda/stream.cuh"

namespace cac::cuda {

StreamVariant float16_variant(int channels, StreamKind kind, bool gradient, int max_shared_bytes) {
  return select_variant<Float16Arithmetic>(channels, kind, gradient, max_shared_bytes);
}

}  // namespace cac::cuda
