#include "kernels/cpu/peak_loop.h"
#include "kernels/cpu/vector_isa.h"

namespace cac::cpu {

const TileKernel* avx512_kernel(Arithmetic arithmetic) {
  return find_vector_kernel("avx512", arithmetic);
}

const PeakLoop* avx512_peak(DType type) { return find_vector_peak(type); }

}  // namespace cac::cpu
