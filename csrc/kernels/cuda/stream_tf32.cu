#include "kernels/cuda/stream.cuh"

namespace cac::cuda {

StreamVariant tensor_float32_variant(int channels, StreamKind kind, bool gradient) {
  return select_variant<TensorFloat32Arithmetic>(channels, kind, gradient);
}

}  // namespace cac::cuda
