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
  typename Isa::Accumulator* shift;     // [lanes]
  double* sum;                          // [lanes]
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
    work.mask = {masked, first_negative, group.interval_begin + tile * kLanes,
                 group.interval_end + tile * kLanes};
    work.shift = static_cast<Accumulator*>(group.shift) + tile * kLanes;
    work.sum = group.sum + tile * kLanes;
    work.weighted = group.with_gradient
                        ? static_cast<Accumulator*>(group.weighted) + tile * tile_elements
                        : nullptr;
    return work;
  };

  for (int i = 0; i < group.num_tiles * kLanes; ++i) group.sum[i] = 0.0;
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
      if (first >= span.skip_begin && first + count <= span.skip_end) continue;
      const bool masked = first < span.hull_end && first + count > span.hull_begin;
      isa.process(work_of(tile, first, masked));
    }
  }
}

}  // namespace
}  // namespace cac::cpu
