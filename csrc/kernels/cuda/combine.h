// The kernels that add up the partials and turn them into losses and gradients.
#pragma once

#include "kernels/cuda/wave.cuh"
#include "kernels/problem.h"

namespace cac::cuda {

struct CombineParams {
  ContrastiveProblem problem;
  WaveParams wave;
  Schedule schedule;
  Partials partials;
  int32_t partial_channels;  // row length of partials.weighted
  float* row_max;            // [A] by slot, in units of logits; with eps > 0 only
};

// row_max of the wave's slots, from the partials of the leading negatives.
void launch_row_max(const CombineParams& params, cudaStream_t stream);

// Values and gradients of the wave's slots, zeros for inactive ones.
void launch_combine(const CombineParams& params, cudaStream_t stream);

}  // namespace cac::cuda
