#include "kernels/cpu/vector_isa.h"

namespace cac::cpu {

const TileKernel* avx512_kernel(DType element) { return find_vector_kernel("avx512", element); }

}  // namespace cac::cpu
