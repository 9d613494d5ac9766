#include "kernels/cuda/stream.cuh"

namespace cac::cuda {

StreamVariant bfloat16_variant(int channels, bool online, bool gradient) {
  return select_variant<BFloat16Arithmetic>(channels, online, gradient);
}

}  // namespace cac::cuda
