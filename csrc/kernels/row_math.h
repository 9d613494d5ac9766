// The scalar mathematics of one anchor, shared by the CPU and the CUDA kernels.
//
// The kernels leave for each anchor
//
//     log sum,  sum = sum_n r(a, n)      and      weighted = sum_n r(a, n) n .
//
// Here they become the loss and the two weights of its gradient with respect to the unit anchor:
//
//     dl/da = ( weight_negatives * weighted / sum  -  weight_positive * p ) / tau .
#pragma once

#include <cmath>

#include "kernels/problem.h"

#if defined(__CUDACC__)
#define CAC_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define CAC_HOST_DEVICE inline
#endif

namespace cac {

// A row of this length or less is divided by it, as in torch.nn.functional.normalize. It has no
// direction that a gradient could turn, so its gradient is 0.
constexpr double kMinNorm = 1e-12;

// Whether the rows of the problem are negatives whose gradient is wanted (problem.h).
CAC_HOST_DEVICE bool is_gradient_of_columns(Objective objective) {
  return objective == Objective::kExponentialGradient || objective == Objective::kLogisticGradient;
}

// Columns [begin, end) among which those that an anchor excludes are.
struct Columns {
  int64_t begin, end;
};

// Only if problem.excluded is given.
CAC_HOST_DEVICE Columns excluded_columns(const ContrastiveProblem& problem, int64_t anchor) {
  if (problem.column_ids != nullptr) {
    return {problem.excluded_begin[anchor], problem.excluded_end[anchor]};
  }
  const int64_t column = problem.excluded[anchor];
  return {column, column < 0 ? column : column + 1};
}

template <typename T>
struct AnchorResult {
  T value;
  T weight_negatives;
  T weight_positive;
};

// log_sum: in units of logits, -inf if no negative is of another class; positive: cos(a, p) / tau;
// row_max: the row maximum, read only if eps > 0.
template <typename T>
CAC_HOST_DEVICE AnchorResult<T> anchor_result(Objective objective, T log_sum, T positive, T eps,
                                              T row_max) {
  if (objective == Objective::kLogSumExp) {
    return {log_sum, T(1), T(0)};
  }
  if (eps == T(0)) {
    // With r = r(a, p): -log(r / (r + sum)) = log(1 + sum / r), and the weight 1 - r / (r + sum) =
    // sum / (r + sum). Both avoid the cancellation that the left sides suffer when r dominates.
    const T margin = log_sum - positive;
    const T small = std::exp(margin < T(0) ? margin : -margin);
    const T value = (margin > T(0) ? margin : T(0)) + std::log1p(small);
    const T weight = (margin < T(0) ? small : T(1)) / (T(1) + small);
    return {value, weight, weight};
  }
  const T positive_exp = std::exp(positive - row_max);
  const T negative_exp = std::exp(log_sum - row_max);
  const T denominator = positive_exp + negative_exp + eps;
  // A negative that is not a leading one can exceed the row maximum by any amount. The positive's
  // probability is then 0, and so is the gradient.
  if (negative_exp > T(0) && negative_exp / T(2) == negative_exp)
    return {-std::log(eps), T(0), T(0)};
  const T probability = positive_exp / denominator;
  const T scale = probability / (probability + eps);
  return {-std::log(probability + eps), scale * negative_exp / denominator,
          scale * (negative_exp + eps) / denominator};
}

}  // namespace cac
