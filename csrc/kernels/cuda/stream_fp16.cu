#include "kernels/cuda/stream.cuh"

namespace cac::cuda {

StreamVariant float16_variant(int channels, bool online, bool gradient) {
  return select_variant<Float16Arithmetic>(channels, online, gradient);
}

}  // namespace cac::cuda
