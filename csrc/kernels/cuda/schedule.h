// The schedule, and the kernel that makes it: only the device knows the number of active anchors.
//
// Active anchors are collected class by class and cut into tiles, the negatives into units. Each
// tile meets the units of its span. Tile after tile, these pairs form one line of work (wave.cuh).
#pragma once

#include "kernels/cuda/device.cuh"
#include "kernels/problem.h"

namespace cac::cuda {

// A tile meets all units but [skip_begin, skip_end), which are masked for every slot of the tile.
// No negative outside [hull_begin, hull_end) is masked for any slot. If intervals count, it meets
// the units from skip_end on, and no negative inside [hull_begin, hull_end) is masked.
struct TileSpan {
  int32_t skip_begin;
  int32_t skip_end;
  int32_t hull_begin;
  int32_t hull_end;
  int32_t excluded_begin;  // no negative outside is excluded for any slot
  int32_t excluded_end;
};

struct Schedule {
  int32_t* num_active;   // [1]
  int32_t* num_valid;    // [1] negatives that count
  int32_t* anchors;      // [A] by slot; inactive ones last
  int2* intervals;       // [A] by slot, negatives [x, y)
  TileSpan* spans;       // [max_tiles]
  int64_t* tile_starts;  // [max_tiles + 1] length of the line of work before each tile
};

struct ScheduleParams {
  const int8_t* direction;          // [A]
  const int64_t* same_class_begin;  // [A]
  const int64_t* same_class_end;    // [A]
  int32_t num_anchors;
  int32_t max_tiles;
  int32_t tile_slots;
  int32_t unit_negatives;
  int64_t num_negatives;
  const int64_t* num_valid;  // [1]; null: all negatives
  Schedule schedule;
  ContrastiveProblem problem;  // whether intervals count, and what is excluded
};

void launch_schedule(const ScheduleParams& params, cudaStream_t stream);

}  // namespace cac::cuda
