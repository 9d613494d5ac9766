#include "kernels/cpu/solver.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/cpu/anchor_rows.h"
#include "kernels/cpu/buffer.h"
#include "kernels/cpu/schedule.h"
#include "kernels/row_math.h"

namespace cac::cpu {
namespace {

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

// Tiles that are held in memory together: their packed anchors and their partials.
struct Block {
  int64_t first_tile;
  int64_t num_tiles;
  AlignedBuffer packed_anchors;  // [tiles][parts][channels x slots]
  AlignedBuffer row_maximum;     // [tiles][slots], eps > 0 only
  AlignedBuffer shift;           // [shares][tiles][slots]
  std::vector<double> sum;       // [shares][tiles][slots]
  std::vector<double> margin;    // [shares][tiles][slots], kMarginSum only
  AlignedBuffer weighted;        // [shares][tiles][channels][slots], with gradient only
};

class Solver {
 public:
  Solver(const ContrastiveProblem& problem, bool online, const TileKernel& kernel,
         const ParallelFor& parallel_for)
      : problem_(problem),
        rows_(problem),
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
        column_shift_(column_bytes()),
        column_weight_(column_bytes()),
        leading_(leading_bytes()) {}

  void run() {
    if (by_columns()) fill_columns();
    if (problem_.eps > 0) copy_leading_rows();
    if (num_groups_ < kWantedTasks) {
      run_at_once();
    } else {
      run_group_by_group();
    }
    rows_.clear_inactive_gradients(parallel_for_);
  }

 private:
  // Every group as a task of its own, so that memory does not grow with the number of anchors.
  void run_group_by_group() {
    parallel_for_(num_groups_, [&](int64_t group) {
      Block block = make_block(group, 1);
      for (int64_t i = 0; i < block.num_tiles; ++i) pack_tile(block, i);
      if (problem_.eps > 0) find_row_maximum(block, 0);
      for (int64_t share = 0; share < num_shares_; ++share) run_group(block, 0, share);
      for (int64_t i = 0; i < block.num_tiles; ++i) finish_tile(block, i);
    });
  }

  // Groups are too few for all threads: they share the tiles and the negatives.
  void run_at_once() {
    Block block = make_block(0, num_groups_);
    parallel_for_(block.num_tiles, [&](int64_t tile) { pack_tile(block, tile); });
    if (problem_.eps > 0) {
      parallel_for_(num_groups_, [&](int64_t group) { find_row_maximum(block, group); });
    }
    parallel_for_(num_groups_ * num_shares_,
                  [&](int64_t task) { run_group(block, task % num_groups_, task / num_groups_); });
    block.packed_anchors.free();
    parallel_for_(block.num_tiles, [&](int64_t tile) { finish_tile(block, tile); });
  }

  Block make_block(int64_t first_group, int64_t num_groups) const {
    const int64_t first_tile = first_group * kGroupTiles;
    const int64_t num_tiles = std::min(num_groups * kGroupTiles, schedule_.num_tiles - first_tile);
    const int64_t partials = num_shares_ * num_tiles;
    return {
        .first_tile = first_tile,
        .num_tiles = num_tiles,
        .packed_anchors = AlignedBuffer(num_tiles * tile_anchor_bytes_),
        .row_maximum =
            AlignedBuffer(problem_.eps > 0 ? num_tiles * tile_slots_ * accumulator_bytes_ : 0),
        .shift = AlignedBuffer(partials * tile_slots_ * accumulator_bytes_),
        .sum = std::vector<double>(partials * tile_slots_),
        .margin = std::vector<double>(
            problem_.objective == Objective::kMarginSum ? partials * tile_slots_ : 0),
        .weighted =
            AlignedBuffer(with_gradient_ ? partials * tile_elements_ * accumulator_bytes_ : 0),
    };
  }

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
      read_row(problem_.column_weights, rows_.value_dtype(), j, 1, &weight);
      write_row(&shift, 1, kernel_.accumulator, j, column_shift_.at(0));
      write_row(&weight, 1, kernel_.accumulator, j, column_weight_.at(0));
    }
  }

  // A given logarithm of a sum as a shift: in units of log 2, and finite.
  double shift_of(const void* log_sums, int64_t index) const {
    double log_sum;
    read_row(log_sums, rows_.value_dtype(), index, 1, &log_sum);
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

  // Unit anchors times log2(e) / tau, so that exp2(a . n) is r(a, n).
  void pack_tile(const Block& block, int64_t tile) const {
    std::byte* packed_tile = block.packed_anchors.at(tile * tile_anchor_bytes_);
    std::memset(packed_tile, 0, tile_anchor_bytes_);
    std::vector<double> row(channels_, 0.0), rounded(channels_);
    std::vector<std::byte> packed_row(channels_ * size_of(kernel_.anchor));
    for (int slot = 0; slot < tile_slots_; ++slot) {
      const int64_t anchor = anchor_at(block, tile, slot);
      if (anchor < 0) continue;
      const Lengths lengths = rows_.read(anchor, row.data());
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

  // -1 for a slot without anchor; `tile` is counted in the block.
  int64_t anchor_at(const Block& block, int64_t tile, int64_t slot) const {
    return schedule_.anchors[(block.first_tile + tile) * tile_slots_ + slot];
  }

  // Partials lie share after share, tile after tile.
  int64_t partial_of(const Block& block, int64_t share, int64_t tile) const {
    return share * block.num_tiles + tile;
  }

  // `group` is counted in the block.
  TileGroup group_of(Block& block, int64_t group, int64_t share,
                     const AlignedBuffer& scratch) const {
    const int64_t first = group * kGroupTiles;
    const int64_t first_slot = (block.first_tile + first) * tile_slots_;
    const int64_t partial = partial_of(block, share, first);
    TileGroup task{};
    task.num_tiles = static_cast<int>(std::min(kGroupTiles, block.num_tiles - first));
    task.anchors = block.packed_anchors.at(first * tile_anchor_bytes_);
    task.spans = &schedule_.spans[block.first_tile + first];
    task.interval_begin = &schedule_.interval_begin[first_slot];
    task.interval_end = &schedule_.interval_end[first_slot];
    task.interval_counts = problem_.interval_counts;
    task.excluded = schedule_.excluded.empty() ? nullptr : &schedule_.excluded[first_slot];
    task.column_ids = schedule_.column_ids.empty() ? nullptr : schedule_.column_ids.data();
    task.negatives = problem_.negatives;
    task.negative_channels = problem_.padded_channels;
    task.channels = channels_;
    task.with_gradient = with_gradient_;
    task.mode = mode();
    task.shift = block.shift.at(partial * tile_slots_ * accumulator_bytes_);
    task.sum = &block.sum[partial * tile_slots_];
    task.weighted =
        with_gradient_ ? block.weighted.at(partial * tile_elements_ * accumulator_bytes_) : nullptr;
    task.margin = block.margin.empty() ? nullptr : &block.margin[partial * tile_slots_];
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

  void run_group(Block& block, int64_t group, int64_t share) const {
    const AlignedBuffer scratch(kernel_.scratch_bytes(channels_));
    TileGroup task = group_of(block, group, share, scratch);
    task.share_begin = begin_of_share(share);
    task.share_end = begin_of_share(share + 1);
    if (task.mode == TileMode::kLogistic) {
      give_shift(task, block, group * kGroupTiles);
    } else {
      fill_shift(task, task.mode == TileMode::kOnlineMax ? kNoMaximum : 0.0);
    }
    kernel_.run(task);
  }

  void give_shift(const TileGroup& task, const Block& block, int64_t first_tile) const {
    for (int64_t i = 0; i < task.num_tiles * tile_slots_; ++i) {
      const int64_t anchor = anchor_at(block, first_tile, i);
      const double shift = anchor < 0 ? 0.0 : shift_of(problem_.log_sums, anchor);
      write_row(&shift, 1, kernel_.accumulator, i, task.shift);
    }
  }

  int32_t begin_of_share(int64_t share) const {
    const int64_t negative = share * num_units() / num_shares_ * kernel_.unit_negatives;
    return static_cast<int32_t>(std::min(negative, problem_.num_negatives));
  }

  size_t leading_bytes() const {
    return problem_.eps > 0
               ? problem_.num_leading_rows * problem_.padded_channels * size_of(kernel_.element)
               : 0;
  }

  void copy_leading_rows() {
    const size_t row_bytes = problem_.padded_channels * size_of(kernel_.element);
    for (int64_t i = 0; i < problem_.num_leading_rows; ++i) {
      std::memcpy(
          leading_.at(i * row_bytes),
          static_cast<const std::byte*>(problem_.negatives) + problem_.leading_rows[i] * row_bytes,
          row_bytes);
    }
  }

  // The largest logit over the leading negatives of every class (ContrastiveProblem::eps).
  void find_row_maximum(Block& block, int64_t group) const {
    const AlignedBuffer scratch(kernel_.scratch_bytes(channels_));
    TileGroup task = group_of(block, group, 0, scratch);
    const std::vector<TileSpan> nothing_masked(task.num_tiles, TileSpan{});
    task.spans = nothing_masked.data();
    task.interval_counts = false;
    task.negatives = leading_.at(0);
    task.share_begin = 0;
    task.share_end = static_cast<int32_t>(problem_.num_leading_rows);
    task.mode = TileMode::kMaxOnly;
    task.with_gradient = false;
    task.weighted = nullptr;
    task.shift = block.row_maximum.at(group * kGroupTiles * tile_slots_ * accumulator_bytes_);
    fill_shift(task, kNoMaximum);
    kernel_.run(task);
  }

  double accumulator_value(const AlignedBuffer& buffer, int64_t index) const {
    return kernel_.accumulator == DType::kFloat64
               ? reinterpret_cast<const double*>(buffer.at(0))[index]
               : reinterpret_cast<const float*>(buffer.at(0))[index];
  }

  // Combines the partials of the shares in order, then finishes each anchor of the tile.
  void finish_tile(const Block& block, int64_t tile) const {
    std::vector<double> maximum(tile_slots_, kNoMaximum), total(tile_slots_, 0.0);
    std::vector<double> margin(tile_slots_, 0.0);
    std::vector<double> weighted(with_gradient_ ? tile_elements_ : 0, 0.0);  // [channels_][slots]
    for (int64_t share = 0; share < num_shares_; ++share) {
      const int64_t first = partial_of(block, share, tile) * tile_slots_;
      for (int slot = 0; slot < tile_slots_; ++slot) {
        maximum[slot] = std::max(maximum[slot], accumulator_value(block.shift, first + slot));
      }
    }
    std::vector<double> scale(tile_slots_);
    for (int64_t share = 0; share < num_shares_; ++share) {
      const int64_t partial = partial_of(block, share, tile);
      for (int slot = 0; slot < tile_slots_; ++slot) {
        const double shift = accumulator_value(block.shift, partial * tile_slots_ + slot);
        scale[slot] = shift == maximum[slot] ? 1.0 : std::exp2(shift - maximum[slot]);
        total[slot] += scale[slot] * block.sum[partial * tile_slots_ + slot];
        if (!block.margin.empty()) margin[slot] += block.margin[partial * tile_slots_ + slot];
      }
      if (!with_gradient_) continue;
      if (kernel_.accumulator == DType::kFloat64) {
        add_scaled<double>(block, partial, scale, weighted);
      } else {
        add_scaled<float>(block, partial, scale, weighted);
      }
    }
    for (int slot = 0; slot < tile_slots_; ++slot) {
      const int64_t anchor = anchor_at(block, tile, slot);
      if (anchor < 0) continue;
      const double row_maximum =
          problem_.eps > 0 ? accumulator_value(block.row_maximum, tile * tile_slots_ + slot) : 0.0;
      rows_.finish(anchor, {.total = total[slot],
                            .margin = margin[slot],
                            .shift = maximum[slot],
                            .row_maximum = row_maximum,
                            .weighted = weighted.data() + slot,
                            .stride = tile_slots_});
    }
  }

  template <typename T>
  void add_scaled(const Block& block, int64_t partial, const std::vector<double>& scale,
                  std::vector<double>& to) const {
    const T* from = reinterpret_cast<const T*>(block.weighted.at(0)) + partial * tile_elements_;
    for (int64_t c = 0; c < channels_; ++c) {
      for (int slot = 0; slot < tile_slots_; ++slot) {
        to[c * tile_slots_ + slot] += scale[slot] * from[c * tile_slots_ + slot];
      }
    }
  }

  const ContrastiveProblem& problem_;
  const AnchorRows rows_;
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
  AlignedBuffer column_shift_;   // [N, and one unit], gradients of columns only
  AlignedBuffer column_weight_;  // the same
  AlignedBuffer leading_;        // [num_leading_rows, padded_channels], eps > 0 only
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
