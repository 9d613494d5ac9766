// One pass over the negatives: S = A N^T, P = exp(S / tau - shift), O += P N, row sums of P.
//
// A block of 4 warps keeps a tile of anchors in shared memory while units of negatives stream
// through two or three buffers beside it. The unit loaded for S serves O as well (keys are values),
// and P goes from the accumulators of the first product to the operand of the second without
// leaving its thread. The A x N matrix exists only as these registers.
#pragma once

#include "kernels/cuda/tile.cuh"

namespace cac::cuda {

// Up to here the rounding of a score, as a power of 2, is no error of the power.
constexpr float kLargestPlainScore = 0x1p20f;
constexpr float kLargestFloat = 0x1.fffffep127f;

// A block's tile: which units it meets, and what it must be masked for.
struct TileWork {
  int tile;
  TileSpan span;
  int begin;  // its units from ...
  int end;    // ... to this one, counted within the tile
  int num_negatives;

  template <class Shape>
  __device__ __forceinline__ int first_negative(int unit) const {
    return (unit < span.low_units ? unit : unit - span.low_units + span.high_first) *
           Shape::kNegatives;
  }
};

// The sums of this block's piece of work in one tile, left in `partials`.
template <class Arithmetic, class Shape, bool kOnline, bool kGradient>
__device__ __forceinline__ void stream_piece(const StreamParams& params, const TileWork& work) {
  char* tile_memory = device::dynamic_shared_memory();
  const device::SharedAddress tile = device::shared_address(tile_memory);
  const device::SharedAddress stages = tile + Shape::kTileBytes;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const float scale = params.scale;

  // Unit i goes to stage i % kStages.
#pragma unroll
  for (int ahead = 0; ahead < Shape::kStages - 1; ++ahead) {
    const int unit = work.begin + ahead;
    if (unit < work.end) {
      load_unit<Shape, !kGradient>(params, stages + unit % Shape::kStages * Shape::kStageBytes,
                                   work.first_negative<Shape>(unit), work.num_negatives);
    }
    device::commit_copies();
  }
  load_anchors<Shape, Arithmetic>(params, tile_memory, work.tile * Shape::kTileRows, warp, lane);

  float outputs[Shape::kBlocksOf16][kGradient ? Shape::kOutputBlocks : 1][4];
  float sums[Shape::kBlocksOf16][2];
  float maxima[Shape::kBlocksOf16][2];  // of the scores, in powers of 2; with kOnline only
#pragma unroll
  for (int m = 0; m < Shape::kBlocksOf16; ++m) {
    sums[m][0] = sums[m][1] = 0.0f;
    // |cos| <= 1 bounds the score of unit vectors without looking at them.
    maxima[m][0] = maxima[m][1] = kOnline ? -INFINITY : scale;
#pragma unroll
    for (int c = 0; c < (kGradient ? Shape::kOutputBlocks : 1); ++c) {
#pragma unroll
      for (int i = 0; i < 4; ++i) outputs[m][c][i] = 0.0f;
    }
  }

#pragma unroll 1
  for (int unit = work.begin; unit < work.end; ++unit) {
    device::wait_for_copies<Shape::kStages - 2>();
    // Also: every warp is done with the buffer that the next copy goes to.
    __syncthreads();
    const int ahead = unit + Shape::kStages - 1;
    if (ahead < work.end) {
      load_unit<Shape, !kGradient>(params, stages + ahead % Shape::kStages * Shape::kStageBytes,
                                   work.first_negative<Shape>(ahead), work.num_negatives);
    }
    device::commit_copies();

    const device::SharedAddress stage = stages + unit % Shape::kStages * Shape::kStageBytes;
    const int first_negative = work.first_negative<Shape>(unit);
    float scores[Shape::kBlocksOf16][Shape::kColumnBlocks][4];
    multiply_scores<Shape, Arithmetic>(scores, tile, stage, warp, lane);

    const bool in_hull = first_negative < work.span.hull_end &&
                         first_negative + Shape::kNegatives > work.span.hull_begin;
    if ((params.wave.mask_labels && in_hull) ||
        first_negative + Shape::kNegatives > work.num_negatives) {
      if constexpr (kGradient) {
        // All warps have read the unit once when one of them knows.
        if (__syncthreads_or(!finite_scores<Shape>(scores))) {
          clear_unbounded_rows<Shape, Arithmetic>(stage);
          __syncthreads();
        }
      }
      mask_scores<Shape>(scores, params, work.tile * Shape::kTileRows, first_negative,
                         work.num_negatives, warp, lane);
    }

#pragma unroll
    for (int m = 0; m < Shape::kBlocksOf16; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float factor = scale;
        float shift = maxima[m][half] - Arithmetic::kExponentOffset;
        if constexpr (kOnline) {
          // Nan is passed over here and stays in the sum.
          float maximum = -INFINITY;
#pragma unroll
          for (int n = 0; n < Shape::kColumnBlocks; ++n) {
            maximum = fmaxf(maximum, fmaxf(scores[m][n][2 * half], scores[m][n][2 * half + 1]));
          }
          maximum = fmaxf(maxima[m][half], scale * maximum);
          maximum = fmaxf(maximum, __shfl_xor_sync(device::kFullWarp, maximum, 1));
          maximum = fmaxf(maximum, __shfl_xor_sync(device::kFullWarp, maximum, 2));
          float reference = maximum;
          shift = maximum - Arithmetic::kExponentOffset;
          if (!(fabsf(maximum) <= kLargestPlainScore)) {
            // Large scores: the rounded product less the largest of these, so that the largest has
            // the power 1; what the fused product below keeps would be many powers of 2. Infinite
            // ones leave an infinite sum. -inf: nothing unmasked so far, all sums are 0 and stay
            // so.
            maximum = fminf(maximum, kLargestFloat);
            reference = maximum == -INFINITY ? 0.0f : maximum;
#pragma unroll
            for (int n = 0; n < Shape::kColumnBlocks; ++n) {
#pragma unroll
              for (int j = 0; j < 2; ++j) {
                float& score = scores[m][n][2 * half + j];
                score = __fmul_rn(score, scale) - reference;
              }
            }
            factor = 1.0f;
            shift = -Arithmetic::kExponentOffset;
          }
          const float rescale = device::exp2_approx(maxima[m][half] - reference);
          maxima[m][half] = maximum;
          sums[m][half] *= rescale;
          if constexpr (kGradient) {
#pragma unroll
            for (int c = 0; c < Shape::kOutputBlocks; ++c) {
              outputs[m][c][2 * half] *= rescale;
              outputs[m][c][2 * half + 1] *= rescale;
            }
          }
        }
        float sum = 0.0f;
#pragma unroll
        for (int n = 0; n < Shape::kColumnBlocks; ++n) {
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            float& score = scores[m][n][2 * half + j];
            score = device::exp2_approx(fmaf(score, factor, -shift));
            sum += score;
          }
        }
        sums[m][half] += sum;
      }
    }
    if constexpr (kGradient) {
      multiply_outputs<Shape, Arithmetic>(outputs, scores, stage, lane);
    }
  }
  device::wait_for_copies<0>();

  // The four lanes of a row hold different columns of it.
  const int piece = Wave::piece(params.wave, static_cast<int>(blockIdx.x), work.tile);
  constexpr float kUnscaled = 1.0f / (1 << Arithmetic::kExponentOffset);
#pragma unroll
  for (int m = 0; m < Shape::kBlocksOf16; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float sum = sums[m][half];
      sum += __shfl_xor_sync(device::kFullWarp, sum, 1);
      sum += __shfl_xor_sync(device::kFullWarp, sum, 2);
      const int row = warp * Shape::kWarpRows + 16 * m + 8 * half + lane / 4;
      const int64_t index = static_cast<int64_t>(piece) * Shape::kTileRows + row;
      if (lane % 4 == 0) {
        params.partials.shifts[index] = maxima[m][half];
        params.partials.sums[index] = sum * kUnscaled;
      }
      if constexpr (kGradient) {
        float* output = params.partials.outputs + index * Shape::kChannels + lane % 4 * 2;
#pragma unroll
        for (int c = 0; c < Shape::kOutputBlocks; ++c) {
          *reinterpret_cast<float2*>(output + 8 * c) = make_float2(
              outputs[m][c][2 * half] * kUnscaled, outputs[m][c][2 * half + 1] * kUnscaled);
        }
      }
    }
  }
}

// The tile that the line of work is in at `position`: the last one that begins there or before.
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

template <class Arithmetic, int kChannels, bool kOnline, bool kGradient>
__global__ __launch_bounds__(128) void stream_kernel(StreamParams params) {
  if constexpr (device::kArchitecture >= Arithmetic::kMinimumArchitecture) {
    using Shape = TileShape<Arithmetic, kChannels>;
    const Wave wave(params.wave, params.schedule);
    const int worker = static_cast<int>(blockIdx.x);
    if (worker >= wave.workers()) return;
    const int end = wave.worker_begin(worker + 1);
    int position = wave.worker_begin(worker);
    TileWork work;
    work.num_negatives = wave.num_negatives();
    work.tile = tile_at(wave, params.wave, position, static_cast<int>(threadIdx.x) % 32);
    while (position < end) {
      const int tile_begin = wave.tile_begin(work.tile);
      const int tile_end = wave.tile_begin(work.tile + 1);
      if (position < tile_end) {
        work.begin = position - tile_begin;
        work.end = (tile_end < end ? tile_end : end) - tile_begin;
        if (params.wave.mask_labels) {
          work.span = params.schedule.spans[work.tile];
        } else {
          work.span = {wave.units(), wave.units(), 0, 0};
        }
        stream_piece<Arithmetic, Shape, kOnline, kGradient>(params, work);
        position = tile_begin + work.end;
        // The next piece writes the shared memory that slower warps may still read.
        __syncthreads();
      }
      ++work.tile;
    }
  } else {
    // plan_contrastive refuses to come here; with an empty kernel the sums would be what lay there.
    device::trap();
  }
}

template <class Arithmetic, int kChannels>
StreamVariant select_variant(bool online, bool gradient) {
  using Shape = TileShape<Arithmetic, kChannels>;
  return {!gradient ? stream_kernel<Arithmetic, kChannels, true, false>
          : online  ? stream_kernel<Arithmetic, kChannels, true, true>
                    : stream_kernel<Arithmetic, kChannels, false, true>,
          Shape::kThreads,
          Shape::kSharedBytes,
          Shape::kTileRows,
          Shape::kNegatives,
          kChannels,
          Arithmetic::kMinimumArchitecture / 10};
}

// Every instance of one arithmetic; each is compiled in a file of its own, to be built in parallel.
template <class Arithmetic>
StreamVariant select_variant(int channels, bool online, bool gradient) {
  if (channels <= 64) return select_variant<Arithmetic, 64>(online, gradient);
  if (channels <= 128) return select_variant<Arithmetic, 128>(online, gradient);
  return select_variant<Arithmetic, 256>(online, gradient);
}

}  // namespace cac::cuda
