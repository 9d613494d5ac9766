#include "kernels/cuda/stream.cuh"

namespace cac::cuda {

StreamVariant tensor_float32_variant(int channels, bool online, bool gradient) {
  return select_variant<TensorFloat32Arithmetic>(channels, online, gradient);
}

}  // namespace cac::cuda
