#include <algorithm>

#include "kernels/cuda/combine.h"
#include "kernels/cuda/elements.cuh"
#include "kernels/row_math.h"

namespace cac::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr float kLn2 = 0.693147180559945309f;

// Where the sums of one slot lie: one index for each partial of its tile.
struct SlotPartials {
  int64_t first;
  int64_t stride;
  int32_t count;
};

__device__ __forceinline__ SlotPartials partials_of_slot(const CombineParams& params,
                                                         int64_t slot) {
  const int tile_slots = params.wave.tile_slots;
  const int tile = static_cast<int>(slot / tile_slots);
  const Wave wave(params.wave, params.schedule);
  const int begin = wave.tile_begin(tile);
  const int end = wave.tile_begin(tile + 1);
  if (begin == end) return {0, tile_slots, 0};
  const int first = wave.worker_at(begin);
  const int last = wave.worker_at(end - 1);
  return {static_cast<int64_t>(Wave::partial(params.wave, first, tile)) * tile_slots +
              slot % tile_slots,
          tile_slots, last - first + 1};
}

// The larger one, nan if one of them is nan: fmaxf ignores nan.
__device__ __forceinline__ float larger_or_nan(float x, float y) { return x > y || x != x ? x : y; }

// Largest shift among the partials whose sum is not 0, -inf if there is none.
__device__ __forceinline__ float largest_shift(const CombineParams& params,
                                               const SlotPartials& partials, int lane) {
  float largest = -INFINITY;
  for (int i = lane; i < partials.count; i += 32) {
    const int64_t index = partials.first + i * partials.stride;
    if (params.partials.sums[index] != 0.0f)
      largest = fmaxf(largest, params.partials.shifts[index]);
  }
  return warp_max(largest);
}

// The factor that brings a partial's sums from its own shift to `largest`.
__device__ __forceinline__ float weight_of_partial(const CombineParams& params, int64_t index,
                                                   float largest) {
  if (params.partials.sums[index] == 0.0f) return 0.0f;
  const float shift = params.partials.shifts[index];
  // Equal also if both are infinite.
  return shift == largest ? 1.0f : device::exp2_approx(shift - largest);
}

// The slot of this warp, counted from the first slot of the wave.
__device__ __forceinline__ int64_t slot_of_warp(const CombineParams& params) {
  return static_cast<int64_t>(params.wave.first_tile) * params.wave.tile_slots +
         static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
}

__device__ __forceinline__ bool in_wave(const CombineParams& params, int64_t slot) {
  const int64_t end =
      static_cast<int64_t>(params.wave.first_tile + params.wave.num_tiles) * params.wave.tile_slots;
  return slot < end && slot < params.problem.num_anchors;
}

__global__ __launch_bounds__(kThreads) void row_max_kernel(CombineParams params) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t slot = slot_of_warp(params);
  if (!in_wave(params, slot) || slot >= *params.schedule.num_active) return;
  const SlotPartials partials = partials_of_slot(params, slot);
  const float shift = largest_shift(params, partials, lane);
  // The shifts leave out nan and infinite scores, but the sums contain them.
  float sum = 0.0f;
  for (int i = lane; i < partials.count; i += 32) {
    sum += params.partials.sums[partials.first + i * partials.stride];
  }
  sum = warp_sum(sum);
  if (lane == 0) params.row_max[slot] = fabsf(sum) < INFINITY ? shift * kLn2 : sum;
}

// Turns the gradient with respect to the unit row into the gradient with respect to the features.
template <int kCount>
__device__ __forceinline__ void through_normalization(LaneRow<kCount>& gradient,
                                                      const LaneRow<kCount>& unit,
                                                      const RowNorm& norm) {
  if (!norm.has_direction) {
    gradient = {};
    return;
  }
  const float radial = dot(gradient, unit);
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    gradient.values[i] = (gradient.values[i] - radial * unit.values[i]) * norm.inverse;
  }
}

__device__ __forceinline__ void write_statistic(void* statistic, int64_t anchor, int lane,
                                                float value) {
  if (statistic != nullptr && lane == 0) static_cast<float*>(statistic)[anchor] = value;
}

template <int kCount>
__global__ __launch_bounds__(kThreads) void combine_kernel(CombineParams params) {
  const ContrastiveProblem& problem = params.problem;
  const RowStatistics& statistics = problem.statistics;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int channels = static_cast<int>(problem.channels);
  const int64_t slot = slot_of_warp(params);
  if (!in_wave(params, slot)) return;
  const int64_t anchor = params.schedule.anchors[slot];
  float* values = static_cast<float*>(problem.values);
  float* gradients = static_cast<float*>(problem.gradients);
  const bool wants_gradient = gradients != nullptr;

  if (slot >= *params.schedule.num_active) {
    if (lane == 0) values[anchor] = 0.0f;
    if (wants_gradient) {
      store_floats(gradients + anchor * channels, channels, lane, LaneRow<kCount>{});
    }
    write_statistic(statistics.log_sums, anchor, lane, 0.0f);
    write_statistic(statistics.negative_weights, anchor, lane, 0.0f);
    write_statistic(statistics.positive_weights, anchor, lane, 0.0f);
    write_statistic(statistics.temperature_gradients, anchor, lane, 0.0f);
    return;
  }

  const SlotPartials partials = partials_of_slot(params, slot);
  const float largest = largest_shift(params, partials, lane);
  float sum = 0.0f;
  for (int i = lane; i < partials.count; i += 32) {
    const int64_t index = partials.first + i * partials.stride;
    sum += params.partials.sums[index] * weight_of_partial(params, index, largest);
  }
  sum = warp_sum(sum);
  const float log_sum = sum > 0.0f    ? largest * kLn2 + logf(sum)  //
                        : sum == 0.0f ? -INFINITY
                                      : sum;  // nan stays nan

  const bool has_positive = problem.objective == Objective::kContrastiveLoss;
  const int view = anchor_view(problem, problem.direction[anchor]);
  const float inverse_temperature = static_cast<float>(
      1.0 / (problem.temperature_on_device == nullptr ? problem.temperature
                                                      : *problem.temperature_on_device));
  LaneRow<kCount> unit = load_row<kCount>(problem.feature_dtype, problem.features[view],
                                          anchor * problem.row_strides[view], channels, lane);
  RowNorm norm = {};
  if (problem.normalize) norm = normalize_row(unit);
  LaneRow<kCount> positive = {};
  float positive_logit = 0.0f;
  if (has_positive) {
    positive = load_row<kCount>(problem.feature_dtype, problem.features[1 - view],
                                anchor * problem.row_strides[1 - view], channels, lane);
    if (problem.normalize) normalize_row(positive);
    positive_logit = dot(unit, positive) * inverse_temperature;
  }
  const float eps = static_cast<float>(problem.eps);
  const float row_max = eps > 0.0f ? larger_or_nan(params.row_max[slot], positive_logit) : 0.0f;
  AnchorResult<float> result =
      anchor_result<float>(problem.objective, log_sum, positive_logit, eps, row_max);
  float negatives_weight = sum == 0.0f ? 0.0f : result.weight_negatives / sum * inverse_temperature;
  float log_sum_weight = sum == 0.0f ? 0.0f : result.weight_negatives;
  if (problem.objective == Objective::kMarginSum) {
    float margin = 0.0f;
    for (int i = lane; i < partials.count; i += 32) {
      margin += params.partials.margins[partials.first + i * partials.stride];
    }
    result = {warp_sum(margin), 0.0f, 0.0f};
    negatives_weight = -inverse_temperature;
    log_sum_weight = sum;
  } else if (is_gradient_of_columns(problem.objective)) {
    result = {0.0f, 0.0f, 0.0f};
    negatives_weight = inverse_temperature;
  }
  write_statistic(statistics.log_sums, anchor, lane, log_sum);
  write_statistic(statistics.negative_weights, anchor, lane, log_sum_weight);
  write_statistic(statistics.positive_weights, anchor, lane, result.weight_positive);
  if (lane == 0) values[anchor] = result.value;
  if (!wants_gradient) return;

  LaneRow<kCount> gradient = {};
  for (int i = 0; i < partials.count; ++i) {
    const int64_t index = partials.first + i * partials.stride;
    const float weight = weight_of_partial(params, index, largest);
    const float* weighted = params.partials.weighted + index * params.partial_channels;
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      const int channel = lane + 32 * j;
      if (channel < channels) {
        gradient.values[j] = fmaf(weight, weighted[channel], gradient.values[j]);
      }
    }
  }
  const float positive_weight = result.weight_positive * inverse_temperature;
#pragma unroll
  for (int j = 0; j < kCount; ++j) {
    gradient.values[j] =
        negatives_weight * gradient.values[j] - positive_weight * positive.values[j];
  }
  if (statistics.temperature_gradients != nullptr) {
    // The value depends on a / tau alone.
    const float along = dot(gradient, unit);
    write_statistic(statistics.temperature_gradients, anchor, lane, -along * inverse_temperature);
  }
  if (problem.normalize) through_normalization(gradient, unit, norm);
  store_floats(gradients + anchor * channels, channels, lane, gradient);
}

int64_t blocks_of(const CombineParams& params) {
  const int64_t first = static_cast<int64_t>(params.wave.first_tile) * params.wave.tile_slots;
  const int64_t whole = static_cast<int64_t>(params.wave.num_tiles) * params.wave.tile_slots;
  const int64_t slots = std::min(whole, params.problem.num_anchors - first);
  return (slots + kWarps - 1) / kWarps;
}

}  // namespace

void launch_row_max(const CombineParams& params, cudaStream_t stream) {
  device::launch(row_max_kernel, blocks_of(params), kThreads, 0, stream, params);
}

void launch_combine(const CombineParams& params, cudaStream_t stream) {
  for_row_length(params.problem.channels, [&](auto count) {
    device::launch(combine_kernel<decltype(count)::value>, blocks_of(params), kThreads, 0, stream,
                   params);
  });
}

}  // namespace cac::cuda
