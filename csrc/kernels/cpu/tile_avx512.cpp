#include "kernels/cpu/vector_isa.h"

namespace cac::cpu {

const TileKernel* avx512_kernel(Arithmetic arithmetic) {
  return find_vector_kernel("avx512", arithmetic);
}

}  // namespace cac::cpu
