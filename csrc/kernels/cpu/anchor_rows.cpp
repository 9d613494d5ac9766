#include "kernels/cpu/anchor_rows.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/cpu/buffer.h"
#include "kernels/row_math.h"

namespace cac::cpu {

Lengths AnchorRows::read_view(int view, int64_t anchor, double* row) const {
  read_row(problem_.features[view], problem_.feature_dtype, anchor * problem_.row_strides[view],
           problem_.channels, row);
  if (!problem_.normalize) return {1.0, 1.0};
  const double norm = row_norm(row, problem_.channels);
  if (norm < kHugeNorm) return {std::max(norm, kMinNorm), norm};
  double largest = 0.0;
  for (int64_t c = 0; c < problem_.channels; ++c) largest = std::max(largest, std::abs(row[c]));
  for (int64_t c = 0; c < problem_.channels; ++c) row[c] /= largest;
  const double rest = row_norm(row, problem_.channels);
  return {rest, largest * rest};
}

AnchorRows::Unit AnchorRows::read_unit(int64_t anchor) const {
  Unit unit{std::vector<double>(problem_.channels), {}};
  unit.lengths = read(anchor, unit.row.data());
  for (double& element : unit.row) element /= unit.lengths.divisor;
  return unit;
}

void AnchorRows::finish(int64_t anchor, const AnchorSums& sums) const {
  if (problem_.objective == Objective::kMarginSum) return finish_margin(anchor, sums);
  if (!is_gradient_of_columns(problem_.objective)) return finish_contrast(anchor, sums);
  std::vector<double> gradient = scaled(sums, 1.0);
  write_gradient(anchor, read_unit(anchor), gradient);
}

void AnchorRows::finish_contrast(int64_t anchor, const AnchorSums& sums) const {
  const int64_t channels = problem_.channels;
  std::vector<double> positive(channels, 0.0);
  const Unit unit = read_unit(anchor);
  double positive_logit = 0.0;
  if (problem_.objective == Objective::kContrastiveLoss) {
    const double divisor = read_view(1 - view_of(anchor), anchor, positive.data()).divisor;
    for (int64_t c = 0; c < channels; ++c) {
      positive[c] /= divisor;
      positive_logit += unit.row[c] * positive[c] / problem_.temperature;
    }
  }
  const double sum = sums.total;
  const double log_sum = sum > 0.0 ? std::log(sum) + sums.shift / kLog2e : -INFINITY;
  const AnchorResult<double> result =
      anchor_result(problem_.objective, log_sum, positive_logit, problem_.eps,
                    std::max(sums.row_maximum / kLog2e, positive_logit));
  write_number(result.value, anchor, problem_.values);
  if (problem_.gradients == nullptr) return;

  write_number(log_sum, anchor, problem_.statistics.log_sums);
  const double negatives_scale = sum > 0.0 ? result.weight_negatives / sum : 0.0;
  write_number(sum > 0.0 ? result.weight_negatives : 0.0, anchor,
               problem_.statistics.negative_weights);
  write_number(result.weight_positive, anchor, problem_.statistics.positive_weights);
  std::vector<double> gradient(channels);
  for (int64_t c = 0; c < channels; ++c) {
    gradient[c] =
        (negatives_scale * sums.weighted[c * sums.stride] - result.weight_positive * positive[c]) /
        problem_.temperature;
  }
  write_gradient(anchor, unit, gradient);
}

// margin: the sum of log(1 + exp(L - s)); total: that of its derivative to L.
void AnchorRows::finish_margin(int64_t anchor, const AnchorSums& sums) const {
  write_number(sums.margin, anchor, problem_.values);
  if (problem_.gradients == nullptr) return;
  write_number(sums.total, anchor, problem_.statistics.negative_weights);
  std::vector<double> gradient = scaled(sums, -1.0);
  write_gradient(anchor, read_unit(anchor), gradient);
}

// [C] weighted sums over the temperature.
std::vector<double> AnchorRows::scaled(const AnchorSums& sums, double scale) const {
  std::vector<double> gradient(problem_.channels);
  for (int64_t c = 0; c < problem_.channels; ++c) {
    gradient[c] = scale * sums.weighted[c * sums.stride] / problem_.temperature;
  }
  return gradient;
}

// gradient: with respect to the unit anchor.
void AnchorRows::write_gradient(int64_t anchor, const Unit& unit,
                                std::vector<double>& gradient) const {
  const int64_t channels = problem_.channels;
  double along_anchor = 0.0;
  for (int64_t c = 0; c < channels; ++c) along_anchor += gradient[c] * unit.row[c];
  // The value depends on a / tau alone.
  write_number(-along_anchor / problem_.temperature, anchor,
               problem_.statistics.temperature_gradients);
  if (problem_.normalize && unit.lengths.norm <= kMinNorm) {  // without a direction
    std::fill(gradient.begin(), gradient.end(), 0.0);
  } else if (problem_.normalize) {
    // Chain through x / |x|: the projection onto the tangent plane, divided by |x|.
    for (int64_t c = 0; c < channels; ++c) {
      gradient[c] = (gradient[c] - along_anchor * unit.row[c]) / unit.lengths.norm;
    }
  }
  write_row(gradient.data(), channels, value_dtype(), anchor * channels, problem_.gradients);
}

// Into a column [A], unless that is not wanted.
void AnchorRows::write_number(double value, int64_t anchor, void* column) const {
  if (column != nullptr) write_row(&value, 1, value_dtype(), anchor, column);
}

void AnchorRows::clear_inactive_gradients(const ParallelFor& parallel_for) const {
  if (problem_.gradients == nullptr) return;
  constexpr int64_t kAnchorsPerTask = 1024;
  const size_t row_bytes = problem_.channels * size_of(value_dtype());
  parallel_for((problem_.num_anchors + kAnchorsPerTask - 1) / kAnchorsPerTask, [&](int64_t task) {
    const int64_t end = std::min(problem_.num_anchors, (task + 1) * kAnchorsPerTask);
    for (int64_t anchor = task * kAnchorsPerTask; anchor < end; ++anchor) {
      if (problem_.direction[anchor] != kInactive) continue;
      std::memset(static_cast<std::byte*>(problem_.gradients) + anchor * row_bytes, 0, row_bytes);
    }
  });
}

}  // namespace cac::cpu
