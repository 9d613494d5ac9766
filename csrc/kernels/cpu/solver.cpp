#include "kernels/cpu/solver.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/cpu/buffer.h"
#include "kernels/cpu/schedule.h"
#include "kernels/row_math.h"

namespace cac::cpu {
namespace {

constexpr double kLog2e = 1.4426950408889634;
// Tiles that use one loaded unit: enough to pay for its transposition (bf16), few enough that their
// partials stay in the L2 cache.
constexpr int64_t kGroupTiles = 16;
// Tasks wanted, so that many cores find work. A constant, because results must not depend on the
// number of threads.
constexpr int64_t kWantedTasks = 64;
// Stands for "no maximum yet": below every logit, and finite so that differences are finite.
constexpr double kNoMaximum = -kLogitLimit;
// The range of the bounded shift, and a little more for rows whose unit length is rounded.
constexpr double kLargestBoundedLogit = 1.001 / kBoundedShiftTemperature;

class Solver {
 public:
  Solver(const ContrastiveProblem& problem, bool online, const TileKernel& kernel,
         const ParallelFor& parallel_for)
      : problem_(problem),
        parallel_for_(parallel_for),
        kernel_(kernel),
        tile_slots_(kernel_.tile_slots),
        channels_(round_up(problem.padded_channels, kernel_.channel_multiple)),
        schedule_(make_schedule(problem, tile_slots_, kernel_.unit_negatives)),
        num_groups_((schedule_.num_tiles + kGroupTiles - 1) / kGroupTiles),
        tile_elements_(channels_ * tile_slots_),
        tile_anchor_bytes_(tile_elements_ * kernel_.anchor_parts * size_of(kernel_.anchor)),
        accumulator_bytes_(size_of(kernel_.accumulator)),
        with_gradient_(problem.gradients != nullptr),
        online_(online),
        num_shares_(choose_shares()),
        packed_anchors_(schedule_.num_tiles * tile_anchor_bytes_),
        row_maximum_(problem.eps > 0 ? schedule_.num_tiles * tile_slots_ * accumulator_bytes_ : 0),
        shift_(num_shares_ * schedule_.num_tiles * tile_slots_ * accumulator_bytes_),
        sum_(num_shares_ * schedule_.num_tiles * tile_slots_),
        weighted_(with_gradient_
                      ? num_shares_ * schedule_.num_tiles * tile_elements_ * accumulator_bytes_
                      : 0),
        margin_(problem.objective == Objective::kMarginSum ? sum_.size() : 0),
        column_shift_(column_bytes()),
        column_weight_(column_bytes()) {}

  void run() {
    parallel_for_(schedule_.num_tiles, [&](int64_t tile) { pack_tile(tile); });
    if (by_columns()) fill_columns();
    if (problem_.eps > 0) find_row_maximum();
    parallel_for_(num_groups_ * num_shares_,
                  [&](int64_t task) { run_group(task % num_groups_, task / num_groups_); });
    parallel_for_(schedule_.num_tiles, [&](int64_t tile) { finish_tile(tile); });
  }

 private:
  // Shares of the negatives; the partials take at most half the memory of the negatives.
  int64_t choose_shares() const {
    if (schedule_.num_tiles == 0) return 1;
    const int64_t by_memory = problem_.num_negatives * size_of(kernel_.element) /
                              (2 * schedule_.num_tiles * tile_slots_ * accumulator_bytes_);
    const int64_t by_tasks = (kWantedTasks + num_groups_ - 1) / num_groups_;
    return std::max<int64_t>(1, std::min({num_units() / 4, by_memory, by_tasks}));
  }

  bool by_columns() const { return is_gradient_of_columns(problem_.objective); }

  // One unit more, because kernels read whole units.
  size_t column_bytes() const {
    return by_columns() ? (problem_.num_negatives + kernel_.unit_negatives) * accumulator_bytes_
                        : 0;
  }

  void fill_columns() {
    std::memset(column_shift_.at(0), 0, column_bytes());
    std::memset(column_weight_.at(0), 0, column_bytes());
    for (int64_t j = 0; j < problem_.num_negatives; ++j) {
      const double shift = shift_of(problem_.column_log_sums, j);
      double weight;
      read_row(problem_.column_weights, value_dtype(), j, 1, &weight);
      write_row(&shift, 1, kernel_.accumulator, j, column_shift_.at(0));
      write_row(&weight, 1, kernel_.accumulator, j, column_weight_.at(0));
    }
  }

  // A given logarithm of a sum as a shift: in units of log 2, and finite.
  double shift_of(const void* log_sums, int64_t index) const {
    double log_sum;
    read_row(log_sums, value_dtype(), index, 1, &log_sum);
    return std::max(log_sum * kLog2e, kNoMaximum);
  }

  TileMode mode() const {
    switch (problem_.objective) {
      case Objective::kMarginSum:
        return TileMode::kLogistic;
      case Objective::kExponentialGradient:
        return TileMode::kColumnExp;
      case Objective::kLogisticGradient:
        return TileMode::kColumnLogistic;
      default:
        return online_ ? TileMode::kOnlineMax : TileMode::kBoundedShift;
    }
  }

  int64_t num_units() const {
    return (problem_.num_negatives + kernel_.unit_negatives - 1) / kernel_.unit_negatives;
  }

  struct Lengths {
    double divisor;  // makes the row that was read unit length; 1 without normalization
    double norm;     // of the features
  };

  // Reads the features of one view at an anchor's pixel.
  Lengths read_features(int view, int64_t anchor, double* row) const {
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

  int anchor_view(int64_t anchor) const { return problem_.direction[anchor] == kSecondToFirst; }

  // Unit anchors times log2(e) / tau, so that exp2(a . n) is r(a, n).
  void pack_tile(int64_t tile) {
    std::byte* packed_tile = packed_anchors_.at(tile * tile_anchor_bytes_);
    std::memset(packed_tile, 0, tile_anchor_bytes_);
    std::vector<double> row(channels_, 0.0), rounded(channels_);
    std::vector<std::byte> packed_row(channels_ * size_of(kernel_.anchor));
    for (int slot = 0; slot < tile_slots_; ++slot) {
      const int64_t anchor = schedule_.anchors[tile * tile_slots_ + slot];
      if (anchor < 0) continue;
      const Lengths lengths = read_features(anchor_view(anchor), anchor, row.data());
      const double scale = kLog2e / problem_.temperature / lengths.divisor;
      for (double& element : row) element *= scale;
      for (int part = 0;;) {
        write_row(row.data(), channels_, kernel_.anchor, 0, packed_row.data());
        pack_slot(packed_row, slot, packed_tile + part * tile_anchor_bytes_ / kernel_.anchor_parts);
        if (++part == kernel_.anchor_parts) break;
        read_row(packed_row.data(), kernel_.anchor, 0, channels_, rounded.data());
        for (int64_t c = 0; c < channels_; ++c) row[c] -= rounded[c];
      }
    }
  }

  void pack_slot(const std::vector<std::byte>& row, int slot, std::byte* packed_part) const {
    const int pairs = kernel_.channel_pairs;
    const size_t element_bytes = size_of(kernel_.anchor);
    const size_t bytes = pairs * element_bytes;
    for (int64_t c = 0; c < channels_; c += pairs) {
      std::memcpy(packed_part + (c * tile_slots_ + slot * pairs) * element_bytes,
                  &row[c * element_bytes], bytes);
    }
  }

  // Partials lie share after share, tile after tile.
  int64_t partial_of(int64_t share, int64_t tile) const {
    return share * schedule_.num_tiles + tile;
  }

  TileGroup group_of(int64_t group, int64_t share, const AlignedBuffer& scratch) {
    const int64_t first = group * kGroupTiles;
    const int64_t partial = partial_of(share, first);
    TileGroup task{};
    task.num_tiles = static_cast<int>(std::min(kGroupTiles, schedule_.num_tiles - first));
    task.anchors = packed_anchors_.at(first * tile_anchor_bytes_);
    task.spans = &schedule_.spans[first];
    task.interval_begin = &schedule_.interval_begin[first * tile_slots_];
    task.interval_end = &schedule_.interval_end[first * tile_slots_];
    task.interval_counts = problem_.interval_counts;
    task.excluded = schedule_.excluded.empty() ? nullptr : &schedule_.excluded[first * tile_slots_];
    task.column_ids = schedule_.column_ids.empty() ? nullptr : schedule_.column_ids.data();
    task.negatives = problem_.negatives;
    task.negative_channels = problem_.padded_channels;
    task.channels = channels_;
    task.with_gradient = with_gradient_;
    task.mode = mode();
    task.shift = shift_.at(partial * tile_slots_ * accumulator_bytes_);
    task.sum = &sum_[partial * tile_slots_];
    task.weighted =
        with_gradient_ ? weighted_.at(partial * tile_elements_ * accumulator_bytes_) : nullptr;
    task.margin = margin_.empty() ? nullptr : &margin_[partial * tile_slots_];
    task.column_shift = by_columns() ? column_shift_.at(0) : nullptr;
    task.column_weight = by_columns() ? column_weight_.at(0) : nullptr;
    task.scratch = scratch.at(0);
    return task;
  }

  void fill_shift(const TileGroup& task, double value) const {
    const int64_t count = task.num_tiles * tile_slots_;
    if (kernel_.accumulator == DType::kFloat64) {
      std::fill_n(static_cast<double*>(task.shift), count, value);
    } else {
      std::fill_n(static_cast<float*>(task.shift), count, static_cast<float>(value));
    }
  }

  void run_group(int64_t group, int64_t share) {
    const AlignedBuffer scratch(kernel_.scratch_bytes(channels_));
    TileGroup task = group_of(group, share, scratch);
    task.share_begin = begin_of_share(share);
    task.share_end = begin_of_share(share + 1);
    if (task.mode == TileMode::kLogistic) {
      give_shift(task, group);
    } else {
      fill_shift(task, task.mode == TileMode::kOnlineMax ? kNoMaximum : 0.0);
    }
    kernel_.run(task);
  }

  void give_shift(const TileGroup& task, int64_t group) const {
    const int64_t first = group * kGroupTiles * tile_slots_;
    for (int64_t i = 0; i < task.num_tiles * tile_slots_; ++i) {
      const int64_t anchor = schedule_.anchors[first + i];
      const double shift = anchor < 0 ? 0.0 : shift_of(problem_.log_sums, anchor);
      write_row(&shift, 1, kernel_.accumulator, i, task.shift);
    }
  }

  int32_t begin_of_share(int64_t share) const {
    const int64_t negative = share * num_units() / num_shares_ * kernel_.unit_negatives;
    return static_cast<int32_t>(std::min(negative, problem_.num_negatives));
  }

  // The largest logit over the leading negatives of every class (ContrastiveProblem::eps).
  void find_row_maximum() {
    const size_t row_bytes = problem_.padded_channels * size_of(kernel_.element);
    const AlignedBuffer leading(problem_.num_leading_rows * row_bytes);
    for (int64_t i = 0; i < problem_.num_leading_rows; ++i) {
      std::memcpy(
          leading.at(i * row_bytes),
          static_cast<const std::byte*>(problem_.negatives) + problem_.leading_rows[i] * row_bytes,
          row_bytes);
    }
    parallel_for_(num_groups_, [&](int64_t group) {
      const AlignedBuffer scratch(kernel_.scratch_bytes(channels_));
      TileGroup task = group_of(group, 0, scratch);
      const std::vector<TileSpan> nothing_masked(task.num_tiles, TileSpan{});
      task.spans = nothing_masked.data();
      task.interval_counts = false;
      task.negatives = leading.at(0);
      task.share_begin = 0;
      task.share_end = static_cast<int32_t>(problem_.num_leading_rows);
      task.mode = TileMode::kMaxOnly;
      task.with_gradient = false;
      task.weighted = nullptr;
      task.shift = row_maximum_.at(group * kGroupTiles * tile_slots_ * accumulator_bytes_);
      fill_shift(task, kNoMaximum);
      kernel_.run(task);
    });
  }

  double accumulator_value(const AlignedBuffer& buffer, int64_t index) const {
    return kernel_.accumulator == DType::kFloat64
               ? reinterpret_cast<const double*>(buffer.at(0))[index]
               : reinterpret_cast<const float*>(buffer.at(0))[index];
  }

  // Combines the partials of the shares in order, then finishes each anchor of the tile.
  void finish_tile(int64_t tile) {
    std::vector<double> maximum(tile_slots_, kNoMaximum), total(tile_slots_, 0.0);
    std::vector<double> margin(tile_slots_, 0.0);
    std::vector<double> weighted(with_gradient_ ? tile_elements_ : 0, 0.0);  // [channels_][slots]
    for (int64_t share = 0; share < num_shares_; ++share) {
      const int64_t first = partial_of(share, tile) * tile_slots_;
      for (int slot = 0; slot < tile_slots_; ++slot) {
        maximum[slot] = std::max(maximum[slot], accumulator_value(shift_, first + slot));
      }
    }
    std::vector<double> scale(tile_slots_);
    for (int64_t share = 0; share < num_shares_; ++share) {
      const int64_t partial = partial_of(share, tile);
      for (int slot = 0; slot < tile_slots_; ++slot) {
        const double shift = accumulator_value(shift_, partial * tile_slots_ + slot);
        scale[slot] = shift == maximum[slot] ? 1.0 : std::exp2(shift - maximum[slot]);
        total[slot] += scale[slot] * sum_[partial * tile_slots_ + slot];
        if (!margin_.empty()) margin[slot] += margin_[partial * tile_slots_ + slot];
      }
      if (!with_gradient_) continue;
      if (kernel_.accumulator == DType::kFloat64) {
        add_scaled<double>(partial, scale, weighted);
      } else {
        add_scaled<float>(partial, scale, weighted);
      }
    }
    for (int slot = 0; slot < tile_slots_; ++slot) {
      const int64_t anchor = schedule_.anchors[tile * tile_slots_ + slot];
      if (anchor < 0) continue;
      const double row_maximum =
          problem_.eps > 0 ? accumulator_value(row_maximum_, tile * tile_slots_ + slot) / kLog2e
                           : 0.0;
      if (problem_.objective == Objective::kMarginSum) {
        finish_margin(anchor, margin[slot], total[slot], weighted.data() + slot);
      } else if (by_columns()) {
        finish_columns(anchor, weighted.data() + slot);
      } else {
        finish_anchor(anchor, total[slot], maximum[slot] / kLog2e, row_maximum,
                      weighted.data() + slot);
      }
    }
  }

  template <typename T>
  void add_scaled(int64_t partial, const std::vector<double>& scale,
                  std::vector<double>& to) const {
    const T* from = reinterpret_cast<const T*>(weighted_.at(0)) + partial * tile_elements_;
    for (int64_t c = 0; c < channels_; ++c) {
      for (int slot = 0; slot < tile_slots_; ++slot) {
        to[c * tile_slots_ + slot] += scale[slot] * from[c * tile_slots_ + slot];
      }
    }
  }

  // sum: of exp(logit - shift); weighted [C], `tile_slots_` apart: sum of exp(logit - shift) n.
  void finish_anchor(int64_t anchor, double sum, double shift, double row_maximum,
                     const double* weighted) {
    const int64_t channels = problem_.channels;
    std::vector<double> positive(channels, 0.0);
    Unit unit = read_unit(anchor);
    const int view = anchor_view(anchor);
    double positive_logit = 0.0;
    if (problem_.objective == Objective::kContrastiveLoss) {
      const double divisor = read_features(1 - view, anchor, positive.data()).divisor;
      for (int64_t c = 0; c < channels; ++c) {
        positive[c] /= divisor;
        positive_logit += unit.row[c] * positive[c] / problem_.temperature;
      }
    }
    const double log_sum = sum > 0.0 ? std::log(sum) + shift : -INFINITY;
    const AnchorResult<double> result =
        anchor_result(problem_.objective, log_sum, positive_logit, problem_.eps,
                      std::max(row_maximum, positive_logit));
    write_row(&result.value, 1, value_dtype(), anchor, problem_.values);
    if (!with_gradient_) return;

    write_statistic(log_sum, anchor, problem_.statistics.log_sums);
    const double negatives_scale = sum > 0.0 ? result.weight_negatives / sum : 0.0;
    write_statistic(sum > 0.0 ? result.weight_negatives : 0.0, anchor,
                    problem_.statistics.negative_weights);
    write_statistic(result.weight_positive, anchor, problem_.statistics.positive_weights);
    std::vector<double> gradient(channels);
    for (int64_t c = 0; c < channels; ++c) {
      gradient[c] =
          (negatives_scale * weighted[c * tile_slots_] - result.weight_positive * positive[c]) /
          problem_.temperature;
    }
    write_gradient(anchor, unit, gradient);
  }

  // margin: the sum of log(1 + exp(L - s)); total: that of its derivative to L.
  void finish_margin(int64_t anchor, double margin, double total, const double* weighted) {
    write_row(&margin, 1, value_dtype(), anchor, problem_.values);
    if (!with_gradient_) return;
    write_statistic(total, anchor, problem_.statistics.negative_weights);
    std::vector<double> gradient(problem_.channels);
    for (int64_t c = 0; c < problem_.channels; ++c) {
      gradient[c] = -weighted[c * tile_slots_] / problem_.temperature;
    }
    write_gradient(anchor, read_unit(anchor), gradient);
  }

  void finish_columns(int64_t row, const double* weighted) {
    std::vector<double> gradient(problem_.channels);
    for (int64_t c = 0; c < problem_.channels; ++c) {
      gradient[c] = weighted[c * tile_slots_] / problem_.temperature;
    }
    write_gradient(row, read_unit(row), gradient);
  }

  struct Unit {
    std::vector<double> row;
    Lengths lengths;
  };

  Unit read_unit(int64_t anchor) const {
    Unit unit{std::vector<double>(problem_.channels), {}};
    unit.lengths = read_features(anchor_view(anchor), anchor, unit.row.data());
    for (double& element : unit.row) element /= unit.lengths.divisor;
    return unit;
  }

  // gradient: with respect to the unit anchor.
  void write_gradient(int64_t anchor, const Unit& unit, std::vector<double>& gradient) {
    const int64_t channels = problem_.channels;
    double along_anchor = 0.0;
    for (int64_t c = 0; c < channels; ++c) along_anchor += gradient[c] * unit.row[c];
    // The value depends on a / tau alone.
    write_statistic(-along_anchor / problem_.temperature, anchor,
                    problem_.statistics.temperature_gradients);
    // Without a direction the gradient stays 0, with which the output was filled.
    if (problem_.normalize && unit.lengths.norm <= kMinNorm) return;
    if (problem_.normalize) {
      // Chain through x / |x|: the projection onto the tangent plane, divided by |x|.
      for (int64_t c = 0; c < channels; ++c) {
        gradient[c] = (gradient[c] - along_anchor * unit.row[c]) / unit.lengths.norm;
      }
    }
    write_row(gradient.data(), channels, value_dtype(), anchor * channels, problem_.gradients);
  }

  void write_statistic(double value, int64_t anchor, void* statistic) const {
    if (statistic != nullptr) write_row(&value, 1, value_dtype(), anchor, statistic);
  }

  DType value_dtype() const {
    return problem_.feature_dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
  }

  const ContrastiveProblem& problem_;
  const ParallelFor& parallel_for_;
  const TileKernel& kernel_;
  const int tile_slots_;
  const int64_t channels_;  // of packed anchors and of weighted
  const Schedule schedule_;
  const int64_t num_groups_;
  const int64_t tile_elements_;
  const size_t tile_anchor_bytes_;
  const size_t accumulator_bytes_;
  const bool with_gradient_;
  const bool online_;
  const int64_t num_shares_;
  AlignedBuffer packed_anchors_;  // [tiles][parts][channels_ x slots]
  AlignedBuffer row_maximum_;     // [tiles][slots]
  AlignedBuffer shift_;           // [shares][tiles][slots]
  std::vector<double> sum_;       // [shares][tiles][slots]
  AlignedBuffer weighted_;        // [shares][tiles][channels_][slots]
  std::vector<double> margin_;    // [shares][tiles][slots], kMarginSum only
  AlignedBuffer column_shift_;    // [N, and one unit], gradients of columns only
  AlignedBuffer column_weight_;   // the same
};

}  // namespace

void solve(const ContrastiveProblem& problem, double largest_logit, const TileKernel& kernel,
           const ParallelFor& parallel_for) {
  const bool is_double = problem.feature_dtype == DType::kFloat64;
  const size_t column_bytes = problem.num_anchors * (is_double ? 8 : 4);
  const RowStatistics& statistics = problem.statistics;
  for (void* column : {problem.values, statistics.log_sums, statistics.negative_weights,
                       statistics.positive_weights, statistics.temperature_gradients}) {
    if (column != nullptr) std::memset(column, 0, column_bytes);
  }
  if (problem.gradients != nullptr) {
    std::memset(problem.gradients, 0, problem.channels * column_bytes);
  }
  const bool online = problem.normalize ? problem.temperature < kBoundedShiftTemperature
                                        : largest_logit > kLargestBoundedLogit;
  Solver(problem, online, kernel, parallel_for).run();
}

Magnitudes measure_magnitudes(const ContrastiveProblem& problem, const ParallelFor& parallel_for) {
  double features = 0.0;
  double product = 0.0;
  for (const int view : {0, 1}) {
    if (problem.features[view] == nullptr) continue;
    const double norm =
        largest_norm(problem.features[view], problem.feature_dtype, problem.num_anchors,
                     problem.row_strides[view], problem.channels, parallel_for);
    product = view == 0 ? norm : product * norm;
    features = std::max(features, norm);
  }
  if (problem.features[1] == nullptr) product = 0.0;
  const double negatives =
      largest_norm(problem.negatives, problem.negative_dtype, problem.num_negatives,
                   problem.padded_channels, problem.padded_channels, parallel_for);
  return {std::max(features * negatives, product) / problem.temperature, negatives};
}

}  // namespace cac::cpu
