#include "kernels/cpu/vector_isa.h"

namespace cac::cpu {

const TileKernel* avx2_kernel(Arithmetic arithmetic) {
  return find_vector_kernel("avx2", arithmetic);
}

}  // namespace cac::cpu
