// The fused contrastive kernel on the CPU: plan tiles of active anchors, run them against shares of
// the negatives, combine in a fixed order.
#pragma once

#include "kernels/contrastive.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/tile_kernel.h"

namespace cac::cpu {

// Solves the problem with `kernel`, whose element type is the negatives'. Results do not depend on
// the number of threads. Beyond its inputs and outputs it holds, for at most A active anchors,
// their packed features and a few partial sums [Cp] each: memory independent of A x N.
void contrastive(const ContrastiveProblem& problem, const TileKernel& kernel,
                 const ParallelFor& parallel_for);

}  // namespace cac::cpu
