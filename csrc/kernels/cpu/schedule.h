// Lays active anchors out in tiles, so that whole units of same-class negatives can be skipped.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/cpu/tile_kernel.h"
#include "kernels/problem.h"

namespace cac::cpu {

struct Schedule {
  int64_t num_tiles = 0;
  std::vector<int64_t> anchors;         // [tiles][slots], -1 for padding
  std::vector<int32_t> interval_begin;  // [tiles][slots]
  std::vector<int32_t> interval_end;    // [tiles][slots]
  std::vector<int32_t> excluded;        // [tiles][slots] ids; empty: none
  std::vector<int32_t> column_ids;      // [N, and -1 for one more unit]; empty: their numbers
  std::vector<TileSpan> spans;          // [tiles]
};

// A tile of one class skips that class's negatives. The anchors of a class that do not fill a tile
// get a padded tile, or a tile together with those of other classes (which then meets all
// negatives, masked slot by slot), whichever costs fewer products. If intervals count, tiles are
// filled class after class: each meets the intervals of its slots, which lie side by side.
Schedule make_schedule(const ContrastiveProblem& problem, int tile_slots, int unit_negatives);

}  // namespace cac::cpu
