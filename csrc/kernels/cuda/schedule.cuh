// How the work of one call is described on the device, where alone the number of active anchors is
// known, and how a wave of it is shared out among blocks.
//
// Active anchors are brought together class by class and cut into tiles. Negatives are cut into
// units. A tile meets every unit but those that lie wholly in its own class; tile after tile, these
// pairs form one line of work, which is cut into equal pieces, one a worker (block). A worker
// leaves one partial result for every tile its piece touches.
#pragma once

#include "kernels/cuda/device.cuh"

namespace cac::cuda {

// The units of one tile are [0, low_units) and [high_first, number of units). No anchor of the
// tile shares its class with a negative outside [hull_begin, hull_end).
struct TileSpan {
  int32_t low_units;
  int32_t high_first;
  int32_t hull_begin;
  int32_t hull_end;
};

struct Schedule {
  int32_t* num_active;   // [1]
  int32_t* num_valid;    // [1] rows of the negatives that count
  int32_t* order;        // [A] anchor at each slot: active ones first, class by class
  int2* intervals;       // [A] negatives [x, y) that share the class of the slot's anchor
  TileSpan* spans;       // [max_tiles]
  int64_t* tile_starts;  // [max_tiles + 1] length of the line of work before each tile
};

// Sums over the units of one piece of work, in units of 2^shift, `tile_rows` rows a piece.
struct Partials {
  float* shifts;   // [pieces, tile_rows]
  float* sums;     // [pieces, tile_rows]
  float* outputs;  // [pieces, tile_rows, channels], sum of probability times negative
};

// A piece shorter than this costs more in its prologue than it gains in parallelism.
constexpr int kMinUnitsOfWorker = 4;

// The tiles of one launch and their negatives.
struct WaveParams {
  int32_t first_tile;
  int32_t num_tiles;
  int32_t tile_rows;
  int32_t max_workers;
  int32_t unit_negatives;
  int32_t num_negatives;  // at most; those that are not valid are left out on the device
  // False: every tile meets every negative, whatever its class.
  bool mask_labels;
};

// Positions on the line are counted from the wave's beginning; there they fit 32 bits.
class Wave {
 public:
  __device__ __forceinline__ Wave(const WaveParams& params, const Schedule& schedule)
      : params_(params),
        starts_(schedule.tile_starts),
        negatives_(*schedule.num_valid < params.num_negatives ? *schedule.num_valid
                                                              : params.num_negatives),
        uniform_units_(params.mask_labels ? -1 : units()),
        active_tiles_((*schedule.num_active + params.tile_rows - 1) / params.tile_rows) {
    base_ = line_position(params.first_tile);
    units_ = tile_begin(params.first_tile + params.num_tiles);
    const int useful = (units_ + kMinUnitsOfWorker - 1) / kMinUnitsOfWorker;
    workers_ = useful < params.max_workers ? useful : params.max_workers;
  }

  // Negatives of the wave that count, and the units they make.
  __device__ __forceinline__ int num_negatives() const { return negatives_; }
  __device__ __forceinline__ int units() const {
    return (negatives_ + params_.unit_negatives - 1) / params_.unit_negatives;
  }

  __device__ __forceinline__ int tile_begin(int tile) const {
    return static_cast<int>(line_position(tile) - base_);
  }
  __device__ __forceinline__ int workers() const { return workers_; }
  __device__ __forceinline__ int worker_begin(int worker) const {
    return static_cast<int>(static_cast<int64_t>(worker) * units_ / workers_);
  }
  __device__ __forceinline__ int worker_at(int position) const {
    return static_cast<int>((static_cast<int64_t>(position + 1) * workers_ - 1) / units_);
  }

  // Both numbers only grow along the line and one of them grows at every cut: no two pieces meet.
  static __device__ __forceinline__ int piece(const WaveParams& params, int worker, int tile) {
    return worker + (tile - params.first_tile);
  }

 private:
  __device__ __forceinline__ int64_t line_position(int tile) const {
    if (uniform_units_ < 0) return starts_[tile];
    return static_cast<int64_t>(uniform_units_) * (tile < active_tiles_ ? tile : active_tiles_);
  }

  const WaveParams& params_;
  const int64_t* starts_;
  int negatives_;
  int uniform_units_;
  int active_tiles_;
  int64_t base_;
  int units_;
  int workers_;
};

}  // namespace cac::cuda
