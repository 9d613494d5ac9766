// The loop over negatives, written once for every instruction set and element type.
//
// `Isa` supplies the vector width, the two products and the exponentials; see vector_isa.h for
// float and double, bf16_isa.h for bfloat16.
#pragma once

#include "kernels/cpu/tile_kernel.h"

namespace cac::cpu {
namespace {

template <class Isa>
void run_tile_group(const TileGroup& group) {
  using Element = typename Isa::Element;
  using Accumulator = typename Isa::Accumulator;
  constexpr int kLanes = Isa::kLanes;
  const int64_t channels = group.padded_channels;
  const int64_t tile_elements = channels * kLanes;

  for (int i = 0; i < group.num_tiles * kLanes; ++i) group.sum[i] = 0.0;
  if (group.with_gradient) {
    Accumulator* weighted = static_cast<Accumulator*>(group.weighted);
    for (int64_t i = 0; i < group.num_tiles * tile_elements; ++i) weighted[i] = 0;
  }

  Isa isa(group.scratch, channels);
  for (int32_t row = group.row_begin; row < group.row_end; row += Isa::kRowBlock) {
    const int32_t rows =
        group.row_end - row < Isa::kRowBlock ? group.row_end - row : Isa::kRowBlock;
    isa.set_block(static_cast<const Element*>(group.negatives) + row * channels, rows);
    for (int tile = 0; tile < group.num_tiles; ++tile) {
      const TileMask& mask = group.masks[tile];
      if (row >= mask.skip_begin && row + rows <= mask.skip_end) continue;
      const bool masked = row < mask.masked_end && row + rows > mask.masked_begin;
      const LaneMask lanes{masked, row, group.lane_begin + tile * kLanes,
                           group.lane_end + tile * kLanes};
      Accumulator* shift = static_cast<Accumulator*>(group.shift) + tile * kLanes;
      Accumulator* weighted = group.with_gradient
                                  ? static_cast<Accumulator*>(group.weighted) + tile * tile_elements
                                  : nullptr;
      double* sum = group.sum + tile * kLanes;

      isa.scores(static_cast<const Element*>(group.anchors) + tile * tile_elements);
      if (group.mode != TileMode::kBoundedShift) {
        isa.raise_maximum(lanes, shift, sum, weighted);
        if (group.mode == TileMode::kMaxOnly) continue;
      }
      isa.exponentiate(lanes, shift, sum);
      if (weighted != nullptr) isa.accumulate(weighted);
    }
  }
}

}  // namespace
}  // namespace cac::cpu
