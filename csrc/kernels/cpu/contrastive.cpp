#include "kernels/cpu/contrastive.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>
#include <vector>

#include "kernels/cpu/plan.h"
#include "kernels/row_math.h"

namespace cac::cpu {
namespace {

constexpr double kLog2e = 1.4426950408889634;
// Tiles that share a loaded block of negatives: enough to pay for its transposition (bf16), few
// enough that their sums stay in the L2 cache.
constexpr int64_t kGroupTiles = 16;
// Tasks wanted, so that many cores find work. A constant: results must not depend on the threads.
constexpr int64_t kWantedTasks = 64;
// Stands for "no maximum yet": below every logit, and finite so that differences are.
constexpr double kNoMaximum = -kLogitLimit;
// The bounded shift's range, and a little for rows whose unit length is rounded.
constexpr double kLargestBoundedLogit = 1.001 / kBoundedShiftTemperature;

class AlignedBuffer {
 public:
  explicit AlignedBuffer(size_t bytes)
      : data_(static_cast<std::byte*>(::operator new(std::max<size_t>(bytes, 1), kAlignment))) {}
  ~AlignedBuffer() { ::operator delete(data_, kAlignment); }
  AlignedBuffer(const AlignedBuffer&) = delete;
  AlignedBuffer& operator=(const AlignedBuffer&) = delete;
  std::byte* at(size_t offset) const { return data_ + offset; }

 private:
  static constexpr std::align_val_t kAlignment{64};
  std::byte* data_;
};

size_t size_of(DType type) {
  switch (type) {
    case DType::kFloat64:
      return 8;
    case DType::kFloat32:
      return 4;
    case DType::kBFloat16:
    case DType::kFloat16:
      return 2;
  }
  return 0;
}

int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

class Solver {
 public:
  Solver(const ContrastiveProblem& problem, bool online, const TileKernel& kernel,
         const ParallelFor& parallel_for)
      : problem_(problem),
        parallel_for_(parallel_for),
        kernel_(kernel),
        lanes_(kernel_.lanes),
        channels_(round_up(problem.padded_channels, kernel_.channel_multiple)),
        plan_(plan_tiles(problem, lanes_)),
        num_groups_((plan_.num_tiles + kGroupTiles - 1) / kGroupTiles),
        tile_elements_(channels_ * lanes_),
        tile_anchor_bytes_(tile_elements_ * kernel_.anchor_parts * size_of(kernel_.anchor)),
        accumulator_bytes_(size_of(kernel_.accumulator)),
        with_gradient_(problem.gradients != nullptr),
        online_(online),
        num_splits_(choose_splits()),
        anchors_(plan_.num_tiles * tile_anchor_bytes_),
        row_maximum_(problem.eps > 0 ? plan_.num_tiles * lanes_ * accumulator_bytes_ : 0),
        shift_(num_splits_ * plan_.num_tiles * lanes_ * accumulator_bytes_),
        sum_(num_splits_ * plan_.num_tiles * lanes_),
        weighted_(with_gradient_
                      ? num_splits_ * plan_.num_tiles * tile_elements_ * accumulator_bytes_
                      : 0) {}

  void run() {
    parallel_for_(plan_.num_tiles, [&](int64_t tile) { pack_tile(tile); });
    if (problem_.eps > 0) find_row_maximum();
    parallel_for_(num_groups_ * num_splits_,
                  [&](int64_t task) { run_group(task % num_groups_, task / num_groups_); });
    parallel_for_(plan_.num_tiles, [&](int64_t tile) { finish_tile(tile); });
  }

 private:
  // Shares of the negatives; their partial sums take at most half the memory of the negatives.
  int64_t choose_splits() const {
    if (plan_.num_tiles == 0) return 1;
    const int64_t blocks = (problem_.num_negatives + kernel_.row_block - 1) / kernel_.row_block;
    const int64_t by_memory = problem_.num_negatives * size_of(kernel_.element) /
                              (2 * plan_.num_tiles * lanes_ * accumulator_bytes_);
    const int64_t by_tasks = (kWantedTasks + num_groups_ - 1) / num_groups_;
    return std::max<int64_t>(1, std::min({blocks / 4, by_memory, by_tasks}));
  }

  struct Lengths {
    double divisor;  // of what was read, to make it unit length; 1 without normalization
    double norm;     // of the features
  };

  // Reads an anchor's features of one view.
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

  int anchor_view(int64_t anchor) const { return problem_.direction[anchor] == kTowards1; }

  // Unit anchors times log2(e) / tau, so that exp2(a . n) is r(a, n).
  void pack_tile(int64_t tile) {
    std::byte* tile_anchors = anchors_.at(tile * tile_anchor_bytes_);
    std::memset(tile_anchors, 0, tile_anchor_bytes_);
    std::vector<double> row(channels_, 0.0), rounded(channels_);
    std::vector<std::byte> packed(channels_ * size_of(kernel_.anchor));
    for (int lane = 0; lane < lanes_; ++lane) {
      const int64_t anchor = plan_.lane_anchor[tile * lanes_ + lane];
      if (anchor < 0) continue;
      const Lengths lengths = read_features(anchor_view(anchor), anchor, row.data());
      const double scale = kLog2e / problem_.temperature / lengths.divisor;
      for (double& element : row) element *= scale;
      for (int part = 0;;) {
        write_row(row.data(), channels_, kernel_.anchor, 0, packed.data());
        pack_lane(packed, lane, tile_anchors + part * tile_anchor_bytes_ / kernel_.anchor_parts);
        if (++part == kernel_.anchor_parts) break;
        read_row(packed.data(), kernel_.anchor, 0, channels_, rounded.data());
        for (int64_t c = 0; c < channels_; ++c) row[c] -= rounded[c];
      }
    }
  }

  void pack_lane(const std::vector<std::byte>& row, int lane, std::byte* tile_anchors) const {
    const int pairs = kernel_.channel_pairs;
    const size_t element_bytes = size_of(kernel_.anchor);
    const size_t bytes = pairs * element_bytes;
    for (int64_t c = 0; c < channels_; c += pairs) {
      std::memcpy(tile_anchors + (c * lanes_ + lane * pairs) * element_bytes,
                  &row[c * element_bytes], bytes);
    }
  }

  TileGroup group_of(int64_t group, int64_t split, const AlignedBuffer& scratch) {
    const int64_t first = group * kGroupTiles;
    const int64_t slot = split * plan_.num_tiles + first;
    TileGroup task{};
    task.num_tiles = static_cast<int>(std::min(kGroupTiles, plan_.num_tiles - first));
    task.anchors = anchors_.at(first * tile_anchor_bytes_);
    task.masks = &plan_.masks[first];
    task.lane_begin = &plan_.lane_begin[first * lanes_];
    task.lane_end = &plan_.lane_end[first * lanes_];
    task.negatives = problem_.negatives;
    task.negative_channels = problem_.padded_channels;
    task.channels = channels_;
    task.with_gradient = with_gradient_;
    task.mode = online_ ? TileMode::kOnlineMax : TileMode::kBoundedShift;
    task.shift = shift_.at(slot * lanes_ * accumulator_bytes_);
    task.sum = &sum_[slot * lanes_];
    task.weighted =
        with_gradient_ ? weighted_.at(slot * tile_elements_ * accumulator_bytes_) : nullptr;
    task.scratch = scratch.at(0);
    return task;
  }

  void fill_shift(const TileGroup& task, double value) const {
    const int64_t count = task.num_tiles * lanes_;
    if (kernel_.accumulator == DType::kFloat64) {
      std::fill_n(static_cast<double*>(task.shift), count, value);
    } else {
      std::fill_n(static_cast<float*>(task.shift), count, static_cast<float>(value));
    }
  }

  void run_group(int64_t group, int64_t split) {
    const AlignedBuffer scratch(kernel_.scratch_bytes(channels_));
    TileGroup task = group_of(group, split, scratch);
    const int64_t blocks = (problem_.num_negatives + kernel_.row_block - 1) / kernel_.row_block;
    const auto row_of = [&](int64_t part) {
      const int64_t row = part * blocks / num_splits_ * kernel_.row_block;
      return static_cast<int32_t>(std::min(row, problem_.num_negatives));
    };
    task.row_begin = row_of(split);
    task.row_end = row_of(split + 1);
    fill_shift(task, online_ ? kNoMaximum : 0.0);
    kernel_.run(task);
  }

  // The largest logit over the leading negatives, whatever their class (ContrastiveProblem::eps).
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
      const std::vector<TileMask> nothing_masked(task.num_tiles, TileMask{0, 0, 0, 0});
      task.masks = nothing_masked.data();
      task.negatives = leading.at(0);
      task.row_begin = 0;
      task.row_end = static_cast<int32_t>(problem_.num_leading_rows);
      task.mode = TileMode::kMaxOnly;
      task.with_gradient = false;
      task.weighted = nullptr;
      task.shift = row_maximum_.at(group * kGroupTiles * lanes_ * accumulator_bytes_);
      fill_shift(task, kNoMaximum);
      kernel_.run(task);
    });
  }

  double accumulator_value(const AlignedBuffer& buffer, int64_t index) const {
    return kernel_.accumulator == DType::kFloat64
               ? reinterpret_cast<const double*>(buffer.at(0))[index]
               : reinterpret_cast<const float*>(buffer.at(0))[index];
  }

  // Combines the shares in their order, then finishes each anchor of the tile.
  void finish_tile(int64_t tile) {
    std::vector<double> maximum(lanes_, kNoMaximum), total(lanes_, 0.0);
    std::vector<double> weighted(with_gradient_ ? tile_elements_ : 0, 0.0);  // [channels_][lanes]
    for (int64_t split = 0; split < num_splits_; ++split) {
      const int64_t slot = (split * plan_.num_tiles + tile) * lanes_;
      for (int lane = 0; lane < lanes_; ++lane) {
        maximum[lane] = std::max(maximum[lane], accumulator_value(shift_, slot + lane));
      }
    }
    std::vector<double> scale(lanes_);
    for (int64_t split = 0; split < num_splits_; ++split) {
      const int64_t slot = split * plan_.num_tiles + tile;
      for (int lane = 0; lane < lanes_; ++lane) {
        const double shift = accumulator_value(shift_, slot * lanes_ + lane);
        scale[lane] = shift == maximum[lane] ? 1.0 : std::exp2(shift - maximum[lane]);
        total[lane] += scale[lane] * sum_[slot * lanes_ + lane];
      }
      if (!with_gradient_) continue;
      if (kernel_.accumulator == DType::kFloat64) {
        add_scaled<double>(slot, scale, weighted);
      } else {
        add_scaled<float>(slot, scale, weighted);
      }
    }
    for (int lane = 0; lane < lanes_; ++lane) {
      const int64_t anchor = plan_.lane_anchor[tile * lanes_ + lane];
      if (anchor < 0) continue;
      const double row_maximum =
          problem_.eps > 0 ? accumulator_value(row_maximum_, tile * lanes_ + lane) / kLog2e : 0.0;
      finish_anchor(anchor, total[lane], maximum[lane] / kLog2e, row_maximum,
                    weighted.data() + lane);
    }
  }

  template <typename T>
  void add_scaled(int64_t slot, const std::vector<double>& scale, std::vector<double>& to) const {
    const T* from = reinterpret_cast<const T*>(weighted_.at(0)) + slot * tile_elements_;
    for (int64_t c = 0; c < channels_; ++c) {
      for (int lane = 0; lane < lanes_; ++lane) {
        to[c * lanes_ + lane] += scale[lane] * from[c * lanes_ + lane];
      }
    }
  }

  // sum: of exp(logit - shift); weighted [C], `lanes_` apart: sum of exp(logit - shift) n.
  void finish_anchor(int64_t anchor, double sum, double shift, double row_maximum,
                     const double* weighted) {
    const int64_t channels = problem_.channels;
    std::vector<double> unit(channels), positive(channels, 0.0), gradient(channels);
    const int view = anchor_view(anchor);
    const Lengths lengths = read_features(view, anchor, unit.data());
    for (double& element : unit) element /= lengths.divisor;
    double positive_logit = 0.0;
    if (problem_.objective == Objective::kContrastiveLoss) {
      const double divisor = read_features(1 - view, anchor, positive.data()).divisor;
      for (int64_t c = 0; c < channels; ++c) {
        positive[c] /= divisor;
        positive_logit += unit[c] * positive[c] / problem_.temperature;
      }
    }
    const double log_sum = sum > 0.0 ? std::log(sum) + shift : -INFINITY;
    const RowResult<double> result =
        row_result(problem_.objective, log_sum, positive_logit, problem_.eps,
                   std::max(row_maximum, positive_logit));
    write_row(&result.value, 1, value_dtype(), anchor, problem_.values);
    // A vector without direction keeps the gradient 0, with which the output was filled.
    if (!with_gradient_ || (problem_.normalize && lengths.norm <= kMinNorm)) return;

    const double negatives_scale = sum > 0.0 ? result.weight_negatives / sum : 0.0;
    double along_anchor = 0.0;
    for (int64_t c = 0; c < channels; ++c) {
      gradient[c] =
          (negatives_scale * weighted[c * lanes_] - result.weight_positive * positive[c]) /
          problem_.temperature;
      along_anchor += gradient[c] * unit[c];
    }
    if (problem_.normalize) {
      // Chain through x / |x|: the projection onto the tangent plane, divided by |x|.
      for (int64_t c = 0; c < channels; ++c) {
        gradient[c] = (gradient[c] - along_anchor * unit[c]) / lengths.norm;
      }
    }
    write_row(gradient.data(), channels, value_dtype(), anchor * channels, problem_.gradients);
  }

  DType value_dtype() const {
    return problem_.feature_dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
  }

  const ContrastiveProblem& problem_;
  const ParallelFor& parallel_for_;
  const TileKernel& kernel_;
  const int lanes_;
  const int64_t channels_;  // of packed anchors and weighted sums
  const TilePlan plan_;
  const int64_t num_groups_;
  const int64_t tile_elements_;
  const size_t tile_anchor_bytes_;
  const size_t accumulator_bytes_;
  const bool with_gradient_;
  const bool online_;
  const int64_t num_splits_;
  AlignedBuffer anchors_;      // [tiles][parts][channels_ x lanes]
  AlignedBuffer row_maximum_;  // [tiles][lanes]
  AlignedBuffer shift_;        // [splits][tiles][lanes]
  std::vector<double> sum_;    // [splits][tiles][lanes]
  AlignedBuffer weighted_;     // [splits][tiles][channels_][lanes]
};

}  // namespace

void contrastive(const ContrastiveProblem& problem, double largest_logit, const TileKernel& kernel,
                 const ParallelFor& parallel_for) {
  const bool is_double = problem.feature_dtype == DType::kFloat64;
  std::memset(problem.values, 0, problem.num_anchors * (is_double ? 8 : 4));
  if (problem.gradients != nullptr) {
    std::memset(problem.gradients, 0, problem.num_anchors * problem.channels * (is_double ? 8 : 4));
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
