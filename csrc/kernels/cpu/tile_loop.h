// The loop over units of negatives, written once for every instruction set and element type.
//
// `Isa` supplies the number of lanes (the slots of a tile), the two matrix products and the
// exponentials; see vector_isa.h for float and double, bf16_isa.h for bfloat16 and for float split
// into several of them.
#pragma once

#include "kernels/cpu/simd.h"
#include "kernels/cpu/tile_kernel.h"

namespace cac::cpu {
namespace {

// One tile that meets the current unit.
template <class Isa>
struct TileWork {
  const typename Isa::Anchor* anchors;
  LaneMask mask;
  typename Isa::Accumulator* shift;  // [lanes]
  double* sum;                       // [lanes]
  double* margin;                    // [lanes], TileMode::kLogistic only
  // Of the unit's negatives, modes of columns only.
  const typename Isa::Accumulator* column_shift;
  const typename Isa::Accumulator* column_weight;
  typename Isa::Accumulator* weighted;  // [C][lanes], null without gradient
};

template <class Isa>
void run_tile_group(const TileGroup& group) {
  using Element = typename Isa::Element;
  using Anchor = typename Isa::Anchor;
  using Accumulator = typename Isa::Accumulator;
  constexpr int kLanes = Isa::kLanes;
  const int64_t channels = group.channels;
  const int64_t tile_elements = channels * kLanes;
  const auto work_of = [&](int tile, int32_t first_negative, bool masked) {
    TileWork<Isa> work;
    work.anchors =
        static_cast<const Anchor*>(group.anchors) + tile * Isa::kAnchorParts * tile_elements;
    work.mask = {masked,
                 group.interval_counts,
                 first_negative,
                 group.interval_begin + tile * kLanes,
                 group.interval_end + tile * kLanes,
                 group.excluded == nullptr ? nullptr : group.excluded + tile * kLanes,
                 group.column_ids == nullptr ? nullptr : group.column_ids + first_negative};
    work.shift = static_cast<Accumulator*>(group.shift) + tile * kLanes;
    work.sum = group.sum + tile * kLanes;
    work.margin = group.margin == nullptr ? nullptr : group.margin + tile * kLanes;
    work.column_shift = work.column_weight = nullptr;
    if (group.column_shift != nullptr) {
      work.column_shift = static_cast<const Accumulator*>(group.column_shift) + first_negative;
      work.column_weight = static_cast<const Accumulator*>(group.column_weight) + first_negative;
    }
    work.weighted = group.with_gradient
                        ? static_cast<Accumulator*>(group.weighted) + tile * tile_elements
                        : nullptr;
    return work;
  };

  for (int i = 0; i < group.num_tiles * kLanes; ++i) group.sum[i] = 0.0;
  if (group.margin != nullptr) {
    for (int i = 0; i < group.num_tiles * kLanes; ++i) group.margin[i] = 0.0;
  }
  if (group.with_gradient) {
    Accumulator* weighted = static_cast<Accumulator*>(group.weighted);
    for (int64_t i = 0; i < group.num_tiles * tile_elements; ++i) weighted[i] = 0;
  }

  Isa isa(group.scratch, channels, group.mode);
  for (int32_t first = group.share_begin; first < group.share_end; first += Isa::kUnitNegatives) {
    const int32_t count = group.share_end - first < Isa::kUnitNegatives ? group.share_end - first
                                                                        : Isa::kUnitNegatives;
    isa.set_unit(static_cast<const Element*>(group.negatives) + first * group.negative_channels,
                 group.negative_channels, count);
    for (int tile = 0; tile < group.num_tiles; ++tile) {
      const TileSpan& span = group.spans[tile];
      const bool inside = first >= span.common_begin && first + count <= span.common_end;
      const bool outside = first >= span.hull_end || first + count <= span.hull_begin;
      if (group.interval_counts ? outside : inside) continue;
      const bool excludes = first < span.excluded_end && first + count > span.excluded_begin;
      isa.process(work_of(tile, first, excludes || !(group.interval_counts ? inside : outside)));
    }
  }
}

}  // namespace
}  // namespace cac::cpu
