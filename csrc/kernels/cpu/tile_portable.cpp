#include "kernels/cpu/vector_isa.h"

namespace cac::cpu {

const TileKernel* portable_kernel(DType element) { return find_vector_kernel("portable", element); }

}  // namespace cac::cpu
