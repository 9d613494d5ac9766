// One pass over the negatives: scores = A N^T, P = exp(scores / tau - shift), sum += P 1,
// weighted += P N.
//
// A block of 4 warps keeps a tile of anchors in shared memory, while units of negatives stream
// through the two or three buffers (stages) beside it. Both products read the same unit (keys are
// values), and P goes from the accumulators of the first product to the operand of the second
// without leaving its thread. The A x N matrix exists only in these registers. Beyond 256 channels
// warps share the scores (wide.cuh).
#pragma once

#include "kernels/cuda/scores.cuh"
#include "kernels/cuda/tile.cuh"
#include "kernels/cuda/wide.cuh"

namespace cac::cuda {

// Negatives that do not count for a slot get the score -inf.
template <class Shape, bool kMasksAll>
__device__ __forceinline__ void mask_scores(
    float (&scores)[Shape::kBlocksOf16][Shape::kColumnBlocks][4], const StreamParams& params,
    int first_slot, int first_negative, int num_negatives, int warp, int lane) {
  const int num_active = *params.schedule.num_active;  // read here: the loop has no register for it
#pragma unroll
  for (int m = 0; m < Shape::kBlocksOf16; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int slot = first_slot + warp * Shape::kWarpSlots + 16 * m + 8 * half + lane / 4;
      const SlotMask<kMasksAll> mask(params, slot, num_active);
#pragma unroll
      for (int n = 0; n < Shape::kColumnBlocks; ++n) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int negative = first_negative + 8 * n + lane % 4 * 2 + i;
          if (mask.masks(negative, num_negatives)) scores[m][n][2 * half + i] = -INFINITY;
        }
      }
    }
  }
}

// Replaces the scores by slopes.
template <class Arithmetic, class Shape>
__device__ __forceinline__ void replace_by_slopes(
    float (&scores)[Shape::kBlocksOf16][Shape::kColumnBlocks][4],
    float (&sums)[Shape::kBlocksOf16][2], float (&margins)[Shape::kBlocksOf16][2],
    const float (&shifts)[Shape::kBlocksOf16][2], const StreamParams& params, float scale,
    int first_negative, int num_negatives, int lane) {
#pragma unroll
  for (int n = 0; n < Shape::kColumnBlocks; ++n) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int negative = first_negative + 8 * n + lane % 4 * 2 + j;
      const Column column = column_of(params.problem, negative, num_negatives);
#pragma unroll
      for (int m = 0; m < Shape::kBlocksOf16; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          replace_by_slope<Arithmetic>(scores[m][n][2 * half + j], sums[m][half], margins[m][half],
                                       params.problem, scale, shifts[m][half], column);
        }
      }
    }
  }
}

// Leaves the sums of this worker's share of one tile in `partials`.
template <class Arithmetic, class Shape, StreamKind kKind, bool kGradient>
__device__ __forceinline__ void stream_share(const StreamParams& params, const TileShare& share) {
  constexpr bool kOnline = kKind == StreamKind::kOnline;
  constexpr bool kMasksAll = kKind != StreamKind::kBounded;
  char* tile_memory = device::dynamic_shared_memory();
  const device::SharedAddress tile = device::shared_address(tile_memory);
  const device::SharedAddress stages = tile + Shape::kTileBytes;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const float scale = scale_of<kMasksAll>(params);
  // Starts the copy of unit i to stage i % kStages.
  const auto load_unit = [&](int unit) {
    load_negatives<Shape, Shape::kThreads, Shape::kUnitNegatives, !kGradient>(
        params, stages + unit % Shape::kStages * Shape::kStageBytes, static_cast<int>(threadIdx.x),
        0, share.first_negative(unit, Shape::kUnitNegatives), share.num_negatives);
  };

#pragma unroll
  for (int ahead = 0; ahead < Shape::kStages - 1; ++ahead) {
    if (share.begin + ahead < share.end) load_unit(share.begin + ahead);
    device::commit_copies();
  }
  load_anchors<Shape, Arithmetic>(params, tile_memory, share.tile * Shape::kTileSlots, warp, lane,
                                  Shape::kWarps, 0);

  float weighted[Shape::kBlocksOf16][kGradient ? Shape::kChannelBlocks : 1][4];
  float sums[Shape::kBlocksOf16][2];
  float shifts[Shape::kBlocksOf16][2];  // in powers of 2; with kOnline the maxima so far
  float margins[kKind == StreamKind::kGiven ? Shape::kBlocksOf16 : 1][2];
#pragma unroll
  for (int m = 0; m < Shape::kBlocksOf16; ++m) {
    sums[m][0] = sums[m][1] = 0.0f;
    // |cos| <= 1 bounds the scores of unit vectors.
    shifts[m][0] = shifts[m][1] = kOnline ? -INFINITY : scale;
    if constexpr (kKind == StreamKind::kGiven) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int slot = share.tile * Shape::kTileSlots + warp * Shape::kWarpSlots + 16 * m +
                         8 * half + lane / 4;
        margins[m][half] = 0.0f;
        shifts[m][half] = given_shift(params, slot);
      }
    }
#pragma unroll
    for (int c = 0; c < (kGradient ? Shape::kChannelBlocks : 1); ++c) {
#pragma unroll
      for (int i = 0; i < 4; ++i) weighted[m][c][i] = 0.0f;
    }
  }

#pragma unroll 1
  for (int unit = share.begin; unit < share.end; ++unit) {
    device::wait_for_copies<Shape::kStages - 2>();
    // Now every warp is also done with the buffer that the next copy fills.
    __syncthreads();
    const int ahead = unit + Shape::kStages - 1;
    if (ahead < share.end) load_unit(ahead);
    device::commit_copies();

    const device::SharedAddress stage = stages + unit % Shape::kStages * Shape::kStageBytes;
    const int first_negative = share.first_negative(unit, Shape::kUnitNegatives);
    float scores[Shape::kBlocksOf16][Shape::kColumnBlocks][4];
    const AnchorsInMemory<Shape> anchors(tile, warp * Shape::kWarpSlots, lane);
    multiply_scores<Shape, Arithmetic>(scores, anchors, stage, lane);

    if (may_be_masked<kMasksAll>(params, share, first_negative, Shape::kUnitNegatives)) {
      if constexpr (kGradient) {
        // When this returns, all warps have read the unit once.
        if (__syncthreads_or(!finite_scores<Shape>(scores))) {
          clear_unbounded_row<Shape, Arithmetic>(stage, static_cast<int>(threadIdx.x));
          __syncthreads();
        }
      }
      mask_scores<Shape, kMasksAll>(scores, params, share.tile * Shape::kTileSlots, first_negative,
                                    share.num_negatives, warp, lane);
    }

    if constexpr (kKind == StreamKind::kGiven) {
      replace_by_slopes<Arithmetic, Shape>(scores, sums, margins, shifts, params, scale,
                                           first_negative, share.num_negatives, lane);
    } else {
#pragma unroll
      for (int m = 0; m < Shape::kBlocksOf16; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const auto score = [&](int i) -> float& { return scores[m][i / 2][2 * half + i % 2]; };
          Powers powers = {scale, shifts[m][half] - Arithmetic::kExponentOffset, 1.0f};
          if constexpr (kOnline) {
            powers = raise_shift<Arithmetic, 2 * Shape::kColumnBlocks>(
                score,
                [](float x) {
                  x = fmaxf(x, __shfl_xor_sync(device::kFullWarp, x, 1));
                  return fmaxf(x, __shfl_xor_sync(device::kFullWarp, x, 2));
                },
                scale, shifts[m][half]);
            sums[m][half] *= powers.rescale;
            if constexpr (kGradient) {
#pragma unroll
              for (int c = 0; c < Shape::kChannelBlocks; ++c) {
                weighted[m][c][2 * half] *= powers.rescale;
                weighted[m][c][2 * half + 1] *= powers.rescale;
              }
            }
          }
          sums[m][half] += replace_by_powers<2 * Shape::kColumnBlocks>(score, powers);
        }
      }
    }
    if constexpr (kGradient) {
      add_weighted<Shape, Arithmetic>(weighted, scores, stage, lane);
    }
  }
  device::wait_for_copies<0>();

  // Four lanes hold the sums of one slot, over different negatives.
  const int partial = Wave::partial(params.wave, static_cast<int>(blockIdx.x), share.tile);
  constexpr float kUnscaled = 1.0f / (1 << Arithmetic::kExponentOffset);
#pragma unroll
  for (int m = 0; m < Shape::kBlocksOf16; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float sum = sums[m][half];
      sum += __shfl_xor_sync(device::kFullWarp, sum, 1);
      sum += __shfl_xor_sync(device::kFullWarp, sum, 2);
      const int slot = warp * Shape::kWarpSlots + 16 * m + 8 * half + lane / 4;
      const int64_t index = static_cast<int64_t>(partial) * Shape::kTileSlots + slot;
      if constexpr (kKind == StreamKind::kGiven) {
        float margin = margins[m][half];
        margin += __shfl_xor_sync(device::kFullWarp, margin, 1);
        margin += __shfl_xor_sync(device::kFullWarp, margin, 2);
        if (lane % 4 == 0) {
          params.partials.shifts[index] = 0.0f;
          params.partials.sums[index] = given_sum(params, sum);
          params.partials.margins[index] = margin;
        }
      } else if (lane % 4 == 0) {
        params.partials.shifts[index] = shifts[m][half];
        params.partials.sums[index] = sum * kUnscaled;
      }
      if constexpr (kGradient) {
        float* target = params.partials.weighted + index * Shape::kChannels + lane % 4 * 2;
#pragma unroll
        for (int c = 0; c < Shape::kChannelBlocks; ++c) {
          *reinterpret_cast<float2*>(target + 8 * c) = make_float2(
              weighted[m][c][2 * half] * kUnscaled, weighted[m][c][2 * half + 1] * kUnscaled);
        }
      }
    }
  }
}

// The tile at this position of the line of work: the last one that begins there or before.
__device__ __forceinline__ int tile_at(const Wave& wave, const WaveParams& params, int position,
                                       int lane) {
  int tiles = 0;
  for (int first = 0; first < params.num_tiles; first += 32) {
    const int tile = first + lane;
    const bool begun =
        tile < params.num_tiles && wave.tile_begin(params.first_tile + tile) <= position;
    tiles += __popc(__ballot_sync(device::kFullWarp, begun));
  }
  return params.first_tile + tiles - 1;
}

template <class Arithmetic, class Shape, StreamKind kKind, bool kGradient>
__global__ __launch_bounds__(Shape::kThreads) void stream_kernel(StreamParams params) {
  if constexpr (device::kArchitecture >= Shape::kMinimumArchitecture) {
    const Wave wave(params.wave, params.schedule);
    const int worker = static_cast<int>(blockIdx.x);
    if (worker >= wave.workers()) return;
    const int begin = wave.worker_begin(worker);
    int position = wave.worker_begin(worker + 1);
    TileShare share;
    share.num_negatives = wave.num_negatives();
    share.tile = tile_at(wave, params.wave, position - 1, static_cast<int>(threadIdx.x) % 32);
    // The last tile first: workers whose share goes beyond one tile then begin with the first
    // negatives and go through them at about the same pace, so that the L2 cache serves most.
    while (position > begin) {
      const int tile_begin = wave.tile_begin(share.tile);
      if (position > tile_begin) {
        share.begin = (tile_begin > begin ? tile_begin : begin) - tile_begin;
        share.end = position - tile_begin;
        if (params.wave.mask_labels) {
          share.span = params.schedule.spans[share.tile];
        } else {
          share.span = {wave.units(), wave.units(), 0, 0, 0, 0};
        }
        if constexpr (Shape::kWide) {
          stream_wide_share<Arithmetic, Shape, kKind, kGradient>(params, share);
        } else {
          stream_share<Arithmetic, Shape, kKind, kGradient>(params, share);
        }
        position = tile_begin + share.begin;
        // The next tile is written to shared memory that slower warps may still read.
        __syncthreads();
      }
      --share.tile;
    }
  } else {
    // plan_launch refuses this case; an empty kernel would leave arbitrary sums.
    device::trap();
  }
}

template <class Arithmetic, class Shape>
StreamVariant::Kernel select_kernel(StreamKind kind, bool gradient) {
  switch (kind) {
    case StreamKind::kBounded:
      if (gradient) return stream_kernel<Arithmetic, Shape, StreamKind::kBounded, true>;
      return stream_kernel<Arithmetic, Shape, StreamKind::kOnline, false>;
    case StreamKind::kOnline:
      return gradient ? stream_kernel<Arithmetic, Shape, StreamKind::kOnline, true>
                      : stream_kernel<Arithmetic, Shape, StreamKind::kOnline, false>;
    case StreamKind::kGiven:
      return stream_kernel<Arithmetic, Shape, StreamKind::kGiven, true>;
  }
  return nullptr;
}

template <class Arithmetic, int kChannels>
StreamVariant select_narrow(StreamKind kind, bool gradient) {
  using Shape = TileShape<Arithmetic, kChannels>;
  return {select_kernel<Arithmetic, Shape>(kind, gradient),
          Shape::kThreads,
          Shape::kSharedBytes,
          Shape::kTileSlots,
          Shape::kUnitNegatives,
          Shape::kStages,
          kChannels,
          Shape::kMinimumArchitecture / 10};
}

template <class Arithmetic>
StreamVariant select_wide(int channels, StreamKind kind, bool gradient, int max_shared_bytes) {
  using Shape = WideTileShape<Arithmetic>;
  const int warps = (channels + Shape::kChannels - 1) / Shape::kChannels;
  const auto memory = WideMemory<Shape>::choose(warps, max_shared_bytes);
  return {select_kernel<Arithmetic, Shape>(kind, gradient),
          32 * warps,
          memory.bytes(),
          Shape::kTileSlots,
          memory.strips * Shape::kUnitNegatives,
          memory.stages,
          warps * Shape::kChannels,
          Shape::kMinimumArchitecture / 10};
}

// All instances of one arithmetic. Each arithmetic has a separate file, so that they are compiled
// in parallel.
template <class Arithmetic>
StreamVariant select_variant(int channels, StreamKind kind, bool gradient, int max_shared_bytes) {
  if (channels <= 64) return select_narrow<Arithmetic, 64>(kind, gradient);
  if (channels <= 128) return select_narrow<Arithmetic, 128>(kind, gradient);
  if (channels <= 256) return select_narrow<Arithmetic, 256>(kind, gradient);
  return select_wide<Arithmetic>(channels, kind, gradient, max_shared_bytes);
}

}  // namespace cac::cuda
