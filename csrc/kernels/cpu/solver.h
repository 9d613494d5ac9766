// The loss on the CPU: lay active anchors out in tiles, run the tiles against shares of the
// negatives, combine the partials in a fixed order.
#pragma once

#include "kernels/cpu/rows.h"
#include "kernels/cpu/tile_kernel.h"
#include "kernels/problem.h"

namespace cac::cpu {

// Logits must stay below this, in units of log 2.
constexpr double kLogitLimit = 1e30;

// Bounds of the logits of rows that are not normalized.
struct Magnitudes {
  double logit;     // no logit is larger
  double negative;  // length of the longest negative
};

Magnitudes measure_magnitudes(const ContrastiveProblem& problem, const ParallelFor& parallel_for);

// Solves the problem with `kernel`, whose element type is the negatives'. Results do not depend on
// the number of threads. Beside the inputs and outputs it holds packed anchors and partials [Cp] of
// 64 groups of tiles at most; if there are more, of one group for each thread. The partials take at
// most half of the memory of the negatives, or are one an anchor.
//
// largest_logit: an upper bound of the logits; not read with `normalize`.
void solve(const ContrastiveProblem& problem, double largest_logit, const TileKernel& kernel,
           const ParallelFor& parallel_for);

}  // namespace cac::cpu
