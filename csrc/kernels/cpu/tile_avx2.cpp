#include "kernels/cpu/peak_loop.h"
#include "kernels/cpu/vector_isa.h"

namespace cac::cpu {

const TileKernel* avx2_kernel(Arithmetic arithmetic) {
  return find_vector_kernel("avx2", arithmetic);
}

const PeakLoop* avx2_peak(DType type) { return find_vector_peak(type); }

}  // namespace cac::cpu
