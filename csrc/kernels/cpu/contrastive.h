// The fused contrastive kernel on the CPU: plan tiles of active anchors, run them against shares of
// the negatives, combine in a fixed order.
#pragma once

#include "kernels/contrastive.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/tile_kernel.h"

namespace cac::cpu {

// Logits must stay below this, in units of log 2.
constexpr double kLogitLimit = 1e30;

// What bounds the logits of rows that are not normalized.
struct Magnitudes {
  double logit;     // no logit is larger
  double negative;  // length of the longest negative
};

Magnitudes measure_magnitudes(const ContrastiveProblem& problem, const ParallelFor& parallel_for);

// Solves the problem with `kernel`, whose element type is the negatives'. Results do not depend on
// the number of threads. Beyond its inputs and outputs it holds, for at most A active anchors,
// their packed features and a few partial sums [Cp] each: memory independent of A x N.
//
// largest_logit: with `normalize` it is not looked at.
void contrastive(const ContrastiveProblem& problem, double largest_logit, const TileKernel& kernel,
                 const ParallelFor& parallel_for);

}  // namespace cac::cpu
