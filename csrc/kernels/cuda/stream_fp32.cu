#include "kernels/cuda/stream.cuh"

namespace cac::cuda {

StreamVariant float32_variant(int channels, bool online, bool gradient) {
  return select_variant<Float32Arithmetic>(channels, online, gradient);
}

}  // namespace cac::cuda
