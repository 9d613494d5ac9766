// Laying active anchors out in tiles, so that whole blocks of same-class negatives can be skipped.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/contrastive.h"
#include "kernels/cpu/tile_kernel.h"

namespace cac::cpu {

struct TilePlan {
  int64_t num_tiles = 0;
  std::vector<int64_t> lane_anchor;  // [tiles][lanes] index of the anchor, -1 for padding
  std::vector<int32_t> lane_begin;   // [tiles][lanes]
  std::vector<int32_t> lane_end;     // [tiles][lanes]
  std::vector<TileMask> masks;       // [tiles]
};

// Tiles of one class skip that class's negatives. What is left of a class after its full tiles gets
// a padded tile of its own, or shares tiles with other classes' rest (which then see all negatives,
// masked lane by lane), whichever costs fewer products.
TilePlan plan_tiles(const ContrastiveProblem& problem, int lanes);

}  // namespace cac::cpu
