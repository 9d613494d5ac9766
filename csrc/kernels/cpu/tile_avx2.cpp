#include "kernels/cpu/vector_isa.h"

namespace cac::cpu {

const TileKernel* avx2_kernel(DType element) { return find_vector_kernel("avx2", element); }

}  // namespace cac::cpu
