// How the line of work of one wave (schedule.h) is divided among workers.
//
// The line is cut into equal shares, one a worker (thread block). A worker leaves one partial for
// every tile that its share touches.
#pragma once

#include "kernels/cuda/schedule.h"

namespace cac::cuda {

// Sums over the units that one share has in one tile, divided by 2^shift.
struct Partials {
  float* shifts;    // [partials, tile_slots]
  float* sums;      // [partials, tile_slots] sum of probabilities
  float* weighted;  // [partials, tile_slots, channels] sum of probability times negative
  float* margins;   // [partials, tile_slots] kMarginSum: sum of log(1 + exp(L - s))
};

// The prologue of a shorter share costs more than its parallelism gains.
constexpr int kMinUnitsOfShare = 4;

// The tiles of a wave and their negatives.
struct WaveParams {
  int32_t first_tile;
  int32_t num_tiles;
  int32_t tile_slots;
  int32_t max_workers;
  int32_t unit_negatives;
  int32_t num_negatives;  // upper bound; the device leaves out those that are not valid
  // False: every tile meets every negative of every class.
  bool mask_labels;
};

// Positions on the line are counted from the beginning of the wave, so that they fit 32 bits.
class Wave {
 public:
  __device__ __forceinline__ Wave(const WaveParams& params, const Schedule& schedule)
      : params_(params),
        starts_(schedule.tile_starts),
        negatives_(*schedule.num_valid < params.num_negatives ? *schedule.num_valid
                                                              : params.num_negatives),
        uniform_units_(params.mask_labels ? -1 : units()),
        active_tiles_((*schedule.num_active + params.tile_slots - 1) / params.tile_slots) {
    base_ = line_position(params.first_tile);
    units_ = tile_begin(params.first_tile + params.num_tiles);
    const int useful = (units_ + kMinUnitsOfShare - 1) / kMinUnitsOfShare;
    workers_ = useful < params.max_workers ? useful : params.max_workers;
  }

  // Negatives of the wave that count, and the units that they fill.
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

  // Index of the partial. Along the line both numbers only grow, and at every cut one of them does:
  // no index occurs twice.
  static __device__ __forceinline__ int partial(const WaveParams& params, int worker, int tile) {
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
