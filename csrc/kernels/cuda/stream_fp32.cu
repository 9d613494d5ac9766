#include "kernels/cuda/stream.cuh"

namespace cac::cuda {

StreamVariant float32_variant(int channels, StreamKind kind, bool gradient, int max_shared_bytes) {
  return select_variant<Float32Arithmetic>(channels, kind, gradient, max_shared_bytes);
}

}  // namespace cac::cuda
