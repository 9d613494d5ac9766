// The kernels that add up the partial sums and turn them into losses and gradients.
#pragma once

#include "kernels/contrastive.h"
#include "kernels/cuda/schedule.cuh"

namespace cac::cuda {

struct CombineParams {
  ContrastiveProblem problem;
  WaveParams wave;
  Schedule schedule;
  Partials partials;
  int32_t partial_channels;  // row length of partials.outputs
  float* row_max;            // [A] by slot, in units of logits; with eps > 0 only
};

// row_max of the wave's slots, from partial results of the leading negatives.
void launch_row_max(const CombineParams& params, cudaStream_t stream);

// values and gradients of the wave's slots, zeros for inactive ones.
void launch_combine(const CombineParams& params, cudaStream_t stream);

}  // namespace cac::cuda
