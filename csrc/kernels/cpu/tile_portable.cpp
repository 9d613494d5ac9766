#include "kernels/cpu/peak_loop.h"
#include "kernels/cpu/vector_isa.h"

namespace cac::cpu {

const TileKernel* portable_kernel(Arithmetic arithmetic) {
  return find_vector_kernel("portable", arithmetic);
}

const PeakLoop* portable_peak(DType type) { return find_vector_peak(type); }

}  // namespace cac::cpu
