#include "kernels/cuda/stream.cuh"

namespace cac::cuda {

StreamVariant bfloat16_variant(int channels, StreamKind kind, bool gradient) {
  return select_variant<BFloat16Arithmetic>(channels, kind, gradient);
}

}  // namespace cac::cuda
