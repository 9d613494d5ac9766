#include "kernels/cpu/vector_isa.h"

namespace cac::cpu {

const TileKernel* portable_kernel(Arithmetic arithmetic) {
  return find_vector_kernel("portable", arithmetic);
}

}  // namespace cac::cpu
