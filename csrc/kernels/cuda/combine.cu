#include <algorithm>

#include "kernels/cuda/combine.h"
#include "kernels/cuda/elements.cuh"
#include "kernels/row_math.h"

namespace cac::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr float kLn2 = 0.693147180559945309f;

// The partial results of one slot: those of the workers [first, last] that touched its tile. One
// row of `tile_rows` lies between the rows of two neighbours.
struct SlotPieces {
  int64_t first_row;
  int64_t row_stride;
  int32_t count;
};

__device__ __forceinline__ SlotPieces pieces_of_slot(const CombineParams& params, int64_t slot) {
  const int tile_rows = params.wave.tile_rows;
  const int tile = static_cast<int>(slot / tile_rows);
  const Wave wave(params.wave, params.schedule);
  const int begin = wave.tile_begin(tile);
  const int end = wave.tile_begin(tile + 1);
  if (begin == end) return {0, tile_rows, 0};
  const int first = wave.worker_at(begin);
  const int last = wave.worker_at(end - 1);
  return {
      static_cast<int64_t>(Wave::piece(params.wave, first, tile)) * tile_rows + slot % tile_rows,
      tile_rows, last - first + 1};
}

// The larger one, nan if one of them is: fmaxf passes nan over.
__device__ __forceinline__ float larger_or_nan(float x, float y) { return x > y || x != x ? x : y; }

// Largest shift among the pieces in which anything was summed, -inf if there is none.
__device__ __forceinline__ float largest_shift(const CombineParams& params,
                                               const SlotPieces& pieces, int lane) {
  float largest = -INFINITY;
  for (int i = lane; i < pieces.count; i += 32) {
    const int64_t row = pieces.first_row + i * pieces.row_stride;
    if (params.partials.sums[row] != 0.0f) largest = fmaxf(largest, params.partials.shifts[row]);
  }
  return warp_max(largest);
}

// What a piece's sums count for in units of 2^largest.
__device__ __forceinline__ float piece_weight(const CombineParams& params, int64_t row,
                                              float largest) {
  if (params.partials.sums[row] == 0.0f) return 0.0f;
  const float shift = params.partials.shifts[row];
  // Also where both are infinite.
  return shift == largest ? 1.0f : device::exp2_approx(shift - largest);
}

// Slot of this warp; slots go on from the wave's first.
__device__ __forceinline__ int64_t slot_of_warp(const CombineParams& params) {
  return static_cast<int64_t>(params.wave.first_tile) * params.wave.tile_rows +
         static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
}

__device__ __forceinline__ bool in_wave(const CombineParams& params, int64_t slot) {
  const int64_t end =
      static_cast<int64_t>(params.wave.first_tile + params.wave.num_tiles) * params.wave.tile_rows;
  return slot < end && slot < params.problem.num_anchors;
}

__global__ __launch_bounds__(kThreads) void row_max_kernel(CombineParams params) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t slot = slot_of_warp(params);
  if (!in_wave(params, slot) || slot >= *params.schedule.num_active) return;
  const SlotPieces pieces = pieces_of_slot(params, slot);
  const float shift = largest_shift(params, pieces, lane);
  // A nan or infinite score is not among the shifts, but every sum tells of it.
  float sum = 0.0f;
  for (int i = lane; i < pieces.count; i += 32) {
    sum += params.partials.sums[pieces.first_row + i * pieces.row_stride];
  }
  sum = warp_sum(sum);
  if (lane == 0) params.row_max[slot] = fabsf(sum) < INFINITY ? shift * kLn2 : sum;
}

// The gradient with respect to unit-length features, carried on to the features as given.
__device__ __forceinline__ void through_normalization(LaneRow& gradient, const LaneRow& unit,
                                                      const RowNorm& norm) {
  if (!norm.has_direction) {
    gradient = {};
    return;
  }
  const float radial = dot(gradient, unit);
#pragma unroll
  for (int i = 0; i < kLaneChannels; ++i) {
    gradient.values[i] = (gradient.values[i] - radial * unit.values[i]) * norm.inverse;
  }
}

__global__ __launch_bounds__(kThreads) void combine_kernel(CombineParams params) {
  const ContrastiveProblem& problem = params.problem;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int channels = static_cast<int>(problem.channels);
  const int64_t slot = slot_of_warp(params);
  if (!in_wave(params, slot)) return;
  const int64_t anchor = params.schedule.order[slot];
  float* values = static_cast<float*>(problem.values);
  float* gradients = static_cast<float*>(problem.gradients);
  const bool wants_gradient = gradients != nullptr;

  if (slot >= *params.schedule.num_active) {
    if (lane == 0) values[anchor] = 0.0f;
    if (wants_gradient) store_floats(gradients + anchor * channels, channels, lane, {});
    return;
  }

  const SlotPieces pieces = pieces_of_slot(params, slot);
  const float largest = largest_shift(params, pieces, lane);
  float sum = 0.0f;
  for (int i = lane; i < pieces.count; i += 32) {
    const int64_t row = pieces.first_row + i * pieces.row_stride;
    sum += params.partials.sums[row] * piece_weight(params, row, largest);
  }
  sum = warp_sum(sum);
  const float log_sum = sum > 0.0f    ? largest * kLn2 + logf(sum)  //
                        : sum == 0.0f ? -INFINITY
                                      : sum;  // nan stays nan

  const bool has_positive = problem.objective == Objective::kContrastiveLoss;
  const int view = anchor_view(problem, problem.direction[anchor]);
  const float inverse_temperature = static_cast<float>(1.0 / problem.temperature);
  LaneRow unit = load_row(problem.feature_dtype, problem.features[view],
                          anchor * problem.row_strides[view], channels, lane);
  RowNorm norm = {};
  if (problem.normalize) norm = normalize_row(unit);
  LaneRow positive = {};
  float positive_logit = 0.0f;
  if (has_positive) {
    positive = load_row(problem.feature_dtype, problem.features[1 - view],
                        anchor * problem.row_strides[1 - view], channels, lane);
    if (problem.normalize) normalize_row(positive);
    positive_logit = dot(unit, positive) * inverse_temperature;
  }
  const float eps = static_cast<float>(problem.eps);
  const float row_max = eps > 0.0f ? larger_or_nan(params.row_max[slot], positive_logit) : 0.0f;
  const RowResult<float> result =
      row_result<float>(problem.objective, log_sum, positive_logit, eps, row_max);
  if (lane == 0) values[anchor] = result.value;
  if (!wants_gradient) return;

  LaneRow gradient = {};
  for (int i = 0; i < pieces.count; ++i) {
    const int64_t row = pieces.first_row + i * pieces.row_stride;
    const float weight = piece_weight(params, row, largest);
    const float* outputs = params.partials.outputs + row * params.partial_channels;
#pragma unroll
    for (int j = 0; j < kLaneChannels; ++j) {
      const int channel = lane + 32 * j;
      if (channel < channels) {
        gradient.values[j] = fmaf(weight, outputs[channel], gradient.values[j]);
      }
    }
  }
  const float negatives_weight =
      sum == 0.0f ? 0.0f : result.weight_negatives / sum * inverse_temperature;
  const float positive_weight = result.weight_positive * inverse_temperature;
#pragma unroll
  for (int j = 0; j < kLaneChannels; ++j) {
    gradient.values[j] =
        negatives_weight * gradient.values[j] - positive_weight * positive.values[j];
  }
  if (problem.normalize) through_normalization(gradient, unit, norm);
  store_floats(gradients + anchor * channels, channels, lane, gradient);
}

int64_t blocks_of(const CombineParams& params) {
  const int64_t first = static_cast<int64_t>(params.wave.first_tile) * params.wave.tile_rows;
  const int64_t whole = static_cast<int64_t>(params.wave.num_tiles) * params.wave.tile_rows;
  const int64_t slots = std::min(whole, params.problem.num_anchors - first);
  return (slots + kWarps - 1) / kWarps;
}

}  // namespace

void launch_row_max(const CombineParams& params, cudaStream_t stream) {
  device::launch(row_max_kernel, blocks_of(params), kThreads, 0, stream, params);
}

void launch_combine(const CombineParams& params, cudaStream_t stream) {
  device::launch(combine_kernel, blocks_of(params), kThreads, 0, stream, params);
}

}  // namespace cac::cuda
