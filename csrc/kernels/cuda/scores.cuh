// From scores to probabilities or slopes: masks, shifts, powers. Written for one slot and some of
// its scores, because narrow and wide tiles (tile.cuh) keep them in different places.
#pragma once

#include "kernels/cuda/arithmetic.cuh"
#include "kernels/cuda/stream.h"
#include "kernels/row_math.h"

namespace cac::cuda {

// Up to this score, in powers of 2, its rounding causes no error of the power.
constexpr float kLargestPlainScore = 0x1p20f;
constexpr float kLargestFloat = 0x1.fffffep127f;
constexpr float kLog2E = 1.44269504088896340736f;

// The units that a worker's share has in one tile.
struct TileShare {
  int tile;
  TileSpan span;
  int begin;  // units [begin, end) among those that the tile meets
  int end;
  int num_negatives;

  __device__ __forceinline__ int first_negative(int unit, int unit_negatives) const {
    return (unit < span.skip_begin ? unit : unit - span.skip_begin + span.skip_end) *
           unit_negatives;
  }
};

// Factor that makes scores powers of 2. kMasksAll: the temperature may be on the device.
template <bool kMasksAll>
__device__ __forceinline__ float scale_of(const StreamParams& params) {
  if constexpr (kMasksAll) {
    const double* temperature = params.problem.temperature_on_device;
    if (temperature != nullptr) return static_cast<float>(1.44269504088896340736 / *temperature);
  }
  return params.scale;
}

// Whether a score of this unit may have to be masked for a slot of the tile.
template <bool kMasksAll>
__device__ __forceinline__ bool may_be_masked(const StreamParams& params, const TileShare& share,
                                              int first_negative, int unit_negatives) {
  const int end = first_negative + unit_negatives;
  bool in_hull = first_negative < share.span.hull_end && end > share.span.hull_begin;
  if constexpr (kMasksAll) {
    if (params.problem.interval_counts) {
      in_hull = first_negative < share.span.hull_begin || end > share.span.hull_end;
    }
    in_hull =
        in_hull || (first_negative < share.span.excluded_end && end > share.span.excluded_begin);
  }
  return (params.wave.mask_labels && in_hull) || end > share.num_negatives;
}

// The negatives that do not count for a slot: those inside its interval, and those beyond the last
// one. kMasksAll: or those outside of it, and the excluded ones.
template <bool kMasksAll>
class SlotMask {
 public:
  __device__ __forceinline__ SlotMask(const StreamParams& params, int slot, int num_active)
      : params_(params) {
    const bool is_anchor = params.wave.mask_labels && slot < num_active;
    if (is_anchor) same_class_ = params.schedule.intervals[slot];
    if constexpr (kMasksAll) {
      counts_ = is_anchor && params.problem.interval_counts;
      if (is_anchor && params.problem.excluded != nullptr) {
        excluded_ = params.problem.excluded[params.schedule.anchors[slot]];
      }
    }
  }

  __device__ __forceinline__ bool masks(int negative, int num_negatives) const {
    bool masked = negative >= same_class_.x && negative < same_class_.y;
    if constexpr (kMasksAll) {
      masked = masked != counts_;
      if (excluded_ >= 0 && negative < num_negatives) {
        const int64_t* ids = params_.problem.column_ids;
        const int64_t id = ids == nullptr ? negative : ids[negative];
        masked = masked || id == excluded_;
      }
    }
    return masked || negative >= num_negatives;
  }

 private:
  const StreamParams& params_;
  int2 same_class_ = make_int2(0, 0);
  bool counts_ = false;
  int64_t excluded_ = -1;
};

// Logarithm of the sum that the problem gives for this slot, in powers of 2; 0 if none.
__device__ __forceinline__ float given_shift(const StreamParams& params, int slot) {
  if (params.problem.log_sums == nullptr || slot >= *params.schedule.num_active) return 0.0f;
  return static_cast<const float*>(params.problem.log_sums)[params.schedule.anchors[slot]] * kLog2E;
}

// What the problem gives for one negative; only gradients of columns have a shift and a weight.
struct Column {
  float shift;
  float weight;
};

__device__ __forceinline__ Column column_of(const ContrastiveProblem& problem, int negative,
                                            int num_negatives) {
  Column column = {0.0f, 1.0f};
  if (is_gradient_of_columns(problem.objective) && negative < num_negatives) {
    const auto* column_shifts = static_cast<const float*>(problem.column_log_sums);
    const auto* column_weights = static_cast<const float*>(problem.column_weights);
    column.shift = column_shifts[negative] * kLog2E;
    column.weight = column_weights[negative];
  }
  return column;
}

// Replaces a score by the slope of the given objective (problem.h), times 2^kExponentOffset, and
// adds it up.
template <class Arithmetic>
__device__ __forceinline__ void replace_by_slope(float& score, float& sum, float& slot_margin,
                                                 const ContrastiveProblem& problem, float scale,
                                                 float slot_shift, const Column& column) {
  constexpr float kLn2 = 0.693147180559945309f;
  constexpr float kScaled = 1 << Arithmetic::kExponentOffset;
  const bool by_column = is_gradient_of_columns(problem.objective);
  const bool masked = score == -INFINITY;
  const float x = fmaf(score, scale, -(by_column ? column.shift : slot_shift));
  float slope;
  float margin = 0.0f;
  if (problem.objective != Objective::kExponentialGradient) {
    const float power = device::exp2_approx(-fabsf(x));
    slope = (x > 0.0f ? power : 1.0f) / (1.0f + power);
    if (!by_column) margin = (x < 0.0f ? -x * kLn2 : 0.0f) + std::log1p(power);
  } else {
    slope = device::exp2_approx(x > 0.0f ? 0.0f : x);  // nan stays nan
  }
  slope = masked ? 0.0f : slope * column.weight;
  sum += slope;
  if (!masked) slot_margin += margin;
  score = slope * kScaled;
}

// The probability of a score is 2^(score * factor - subtrahend); sums so far are to be multiplied
// by `rescale`.
struct Powers {
  float factor;
  float subtrahend;
  float rescale;
};

// Raises the running maximum `shift` of a slot. `score(i)` is one of kCount scores that this lane
// holds, largest_of_slot(x) the largest x of all lanes that hold scores of the slot.
template <class Arithmetic, int kCount, class Score, class LargestOfSlot>
__device__ __forceinline__ Powers raise_shift(Score score, LargestOfSlot largest_of_slot,
                                              float scale, float& shift) {
  // Ignores nan, which stays in the sum.
  float maximum = -INFINITY;
#pragma unroll
  for (int i = 0; i < kCount; i += 2) {
    maximum = fmaxf(maximum, fmaxf(score(i), score(i + 1)));
  }
  maximum = largest_of_slot(fmaxf(shift, scale * maximum));
  float reference = maximum;
  Powers powers = {scale, maximum - Arithmetic::kExponentOffset, 1.0f};
  if (!(fabsf(maximum) <= kLargestPlainScore)) {
    // Large scores: subtract the maximum from the rounded products, so that the largest becomes the
    // power 1. The fused product of replace_by_powers does not round, and the difference could be
    // many powers of 2. An infinite score leaves an infinite sum. A maximum of -inf means that all
    // was masked so far: all sums are 0 and stay 0.
    maximum = fminf(maximum, kLargestFloat);
    reference = maximum == -INFINITY ? 0.0f : maximum;
#pragma unroll
    for (int i = 0; i < kCount; ++i) score(i) = __fmul_rn(score(i), scale) - reference;
    powers.factor = 1.0f;
    powers.subtrahend = -Arithmetic::kExponentOffset;
  }
  powers.rescale = device::exp2_approx(shift - reference);
  shift = maximum;
  return powers;
}

// Replaces the scores by their probabilities; returns the sum of these.
template <int kCount, class Score>
__device__ __forceinline__ float replace_by_powers(Score score, const Powers& powers) {
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    score(i) = device::exp2_approx(fmaf(score(i), powers.factor, -powers.subtrahend));
    sum += score(i);
  }
  return sum;
}

// The sum of one slot in a partial. Slopes of columns have both signs: their sum says nothing of
// the weighted sums.
__device__ __forceinline__ float given_sum(const StreamParams& params, float sum) {
  return is_gradient_of_columns(params.problem.objective) ? 1.0f : sum;
}

}  // namespace cac::cuda
