// One pass over the negatives: scores = A N^T, P = exp(scores / tau - shift), sum += P 1,
// weighted += P N.
//
// A block of 4 warps keeps a tile of anchors in shared memory, while units of negatives stream
// through the two or three buffers (stages) beside it. Both products read the same unit (keys are
// values), and P goes from the accumulators of the first product to the operand of the second
// without leaving its thread. The A x N matrix exists only in these registers.
#pragma once

#include "kernels/cuda/tile.cuh"

namespace cac::cuda {

// Up to this score, in powers of 2, its rounding causes no error of the power.
constexpr float kLargestPlainScore = 0x1p20f;
constexpr float kLargestFloat = 0x1.fffffep127f;
constexpr float kLog2E = 1.44269504088896340736f;

// The units that a worker's share has in one tile.
struct TileShare {
  int tile;
  TileSpan span;
  int begin;  // units [begin, end) among those that the tile meets
  int end;
  int num_negatives;

  template <class Shape>
  __device__ __forceinline__ int first_negative(int unit) const {
    return (unit < span.skip_begin ? unit : unit - span.skip_begin + span.skip_end) *
           Shape::kUnitNegatives;
  }
};

// Replaces the scores by the slopes of the given objective (problem.h), times 2^kExponentOffset,
// and adds them up.
template <class Arithmetic, class Shape>
__device__ __forceinline__ void replace_by_slopes(
    float (&scores)[Shape::kBlocksOf16][Shape::kColumnBlocks][4],
    float (&sums)[Shape::kBlocksOf16][2], float (&margins)[Shape::kBlocksOf16][2],
    const float (&shifts)[Shape::kBlocksOf16][2], const StreamParams& params, float scale,
    int first_negative, int num_negatives, int lane) {
  constexpr float kLn2 = 0.693147180559945309f;
  constexpr float kScaled = 1 << Arithmetic::kExponentOffset;
  const ContrastiveProblem& problem = params.problem;
  const bool by_column = is_gradient_of_columns(problem.objective);
  const bool logistic = problem.objective != Objective::kExponentialGradient;
  const auto* column_shifts = static_cast<const float*>(problem.column_log_sums);
  const auto* column_weights = static_cast<const float*>(problem.column_weights);
#pragma unroll
  for (int n = 0; n < Shape::kColumnBlocks; ++n) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int negative = first_negative + 8 * n + lane % 4 * 2 + j;
      float column_shift = 0.0f;
      float weight = 1.0f;
      if (by_column && negative < num_negatives) {
        column_shift = column_shifts[negative] * kLog2E;
        weight = column_weights[negative];
      }
#pragma unroll
      for (int m = 0; m < Shape::kBlocksOf16; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          float& score = scores[m][n][2 * half + j];
          const bool masked = score == -INFINITY;
          const float x = fmaf(score, scale, -(by_column ? column_shift : shifts[m][half]));
          float slope;
          float margin = 0.0f;
          if (logistic) {
            const float power = device::exp2_approx(-fabsf(x));
            slope = (x > 0.0f ? power : 1.0f) / (1.0f + power);
            if (!by_column) margin = (x < 0.0f ? -x * kLn2 : 0.0f) + std::log1p(power);
          } else {
            slope = device::exp2_approx(x > 0.0f ? 0.0f : x);  // nan stays nan
          }
          slope = masked ? 0.0f : slope * weight;
          sums[m][half] += slope;
          if (!masked) margins[m][half] += margin;
          score = slope * kScaled;
        }
      }
    }
  }
}

// Leaves the sums of this worker's share of one tile in `partials`.
template <class Arithmetic, class Shape, StreamKind kKind, bool kGradient>
__device__ __forceinline__ void stream_share(const StreamParams& params, const TileShare& share) {
  constexpr bool kOnline = kKind == StreamKind::kOnline || kKind == StreamKind::kGeneral;
  constexpr bool kMasksAll = kKind == StreamKind::kGeneral || kKind == StreamKind::kGiven;
  char* tile_memory = device::dynamic_shared_memory();
  const device::SharedAddress tile = device::shared_address(tile_memory);
  const device::SharedAddress stages = tile + Shape::kTileBytes;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  float scale = params.scale;
  if constexpr (kMasksAll) {
    const double* temperature = params.problem.temperature_on_device;
    if (temperature != nullptr) scale = static_cast<float>(1.44269504088896340736 / *temperature);
  }

  // Unit i goes to stage i % kStages.
#pragma unroll
  for (int ahead = 0; ahead < Shape::kStages - 1; ++ahead) {
    const int unit = share.begin + ahead;
    if (unit < share.end) {
      load_unit<Shape, !kGradient>(params, stages + unit % Shape::kStages * Shape::kStageBytes,
                                   share.first_negative<Shape>(unit), share.num_negatives);
    }
    device::commit_copies();
  }
  load_anchors<Shape, Arithmetic>(params, tile_memory, share.tile * Shape::kTileSlots, warp, lane);

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
        margins[m][half] = shifts[m][half] = 0.0f;
        if (params.problem.log_sums != nullptr && slot < *params.schedule.num_active) {
          shifts[m][half] =
              static_cast<const float*>(params.problem.log_sums)[params.schedule.anchors[slot]] *
              kLog2E;
        }
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
    if (ahead < share.end) {
      load_unit<Shape, !kGradient>(params, stages + ahead % Shape::kStages * Shape::kStageBytes,
                                   share.first_negative<Shape>(ahead), share.num_negatives);
    }
    device::commit_copies();

    const device::SharedAddress stage = stages + unit % Shape::kStages * Shape::kStageBytes;
    const int first_negative = share.first_negative<Shape>(unit);
    float scores[Shape::kBlocksOf16][Shape::kColumnBlocks][4];
    multiply_scores<Shape, Arithmetic>(scores, tile, stage, warp, lane);

    bool in_hull = first_negative < share.span.hull_end &&
                   first_negative + Shape::kUnitNegatives > share.span.hull_begin;
    if constexpr (kMasksAll) {
      if (params.problem.interval_counts) {
        in_hull = first_negative < share.span.hull_begin ||
                  first_negative + Shape::kUnitNegatives > share.span.hull_end;
      }
      in_hull = in_hull || (first_negative < share.span.excluded_end &&
                            first_negative + Shape::kUnitNegatives > share.span.excluded_begin);
    }
    if ((params.wave.mask_labels && in_hull) ||
        first_negative + Shape::kUnitNegatives > share.num_negatives) {
      if constexpr (kGradient) {
        // When this returns, all warps have read the unit once.
        if (__syncthreads_or(!finite_scores<Shape>(scores))) {
          clear_unbounded_rows<Shape, Arithmetic>(stage);
          __syncthreads();
        }
      }
      mask_scores<Shape, kMasksAll>(scores, params, share.tile * Shape::kTileSlots, first_negative,
                                    share.num_negatives, warp, lane);
    }

    if constexpr (kKind == StreamKind::kGiven) {
      replace_by_slopes<Arithmetic, Shape>(scores, sums, margins, shifts, params, scale,
                                           first_negative, share.num_negatives, lane);
      add_weighted<Shape, Arithmetic>(weighted, scores, stage, lane);
      continue;
    }
#pragma unroll
    for (int m = 0; m < Shape::kBlocksOf16; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float factor = scale;
        float subtrahend = shifts[m][half] - Arithmetic::kExponentOffset;
        if constexpr (kOnline) {
          // Ignores nan, which stays in the sum.
          float maximum = -INFINITY;
#pragma unroll
          for (int n = 0; n < Shape::kColumnBlocks; ++n) {
            maximum = fmaxf(maximum, fmaxf(scores[m][n][2 * half], scores[m][n][2 * half + 1]));
          }
          maximum = fmaxf(shifts[m][half], scale * maximum);
          maximum = fmaxf(maximum, __shfl_xor_sync(device::kFullWarp, maximum, 1));
          maximum = fmaxf(maximum, __shfl_xor_sync(device::kFullWarp, maximum, 2));
          float reference = maximum;
          subtrahend = maximum - Arithmetic::kExponentOffset;
          if (!(fabsf(maximum) <= kLargestPlainScore)) {
            // Large scores: subtract the maximum from the rounded products, so that the largest
            // becomes the power 1. The fused product below does not round, and the difference could
            // be many powers of 2. An infinite score leaves an infinite sum. A maximum of -inf
            // means that all was masked so far: all sums are 0 and stay 0.
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
            subtrahend = -Arithmetic::kExponentOffset;
          }
          const float rescale = device::exp2_approx(shifts[m][half] - reference);
          shifts[m][half] = maximum;
          sums[m][half] *= rescale;
          if constexpr (kGradient) {
#pragma unroll
            for (int c = 0; c < Shape::kChannelBlocks; ++c) {
              weighted[m][c][2 * half] *= rescale;
              weighted[m][c][2 * half + 1] *= rescale;
            }
          }
        }
        float sum = 0.0f;
#pragma unroll
        for (int n = 0; n < Shape::kColumnBlocks; ++n) {
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            float& score = scores[m][n][2 * half + j];
            score = device::exp2_approx(fmaf(score, factor, -subtrahend));
            sum += score;
          }
        }
        sums[m][half] += sum;
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
          // Slopes of columns have both signs: their sum says nothing of the weighted sums.
          const bool by_column = is_gradient_of_columns(params.problem.objective);
          params.partials.shifts[index] = 0.0f;
          params.partials.sums[index] = by_column ? 1.0f : sum;
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

template <class Arithmetic, int kChannels, StreamKind kKind, bool kGradient>
__global__ __launch_bounds__(128) void stream_kernel(StreamParams params) {
  if constexpr (device::kArchitecture >= Arithmetic::kMinimumArchitecture) {
    using Shape = TileShape<Arithmetic, kChannels>;
    const Wave wave(params.wave, params.schedule);
    const int worker = static_cast<int>(blockIdx.x);
    if (worker >= wave.workers()) return;
    const int end = wave.worker_begin(worker + 1);
    int position = wave.worker_begin(worker);
    TileShare share;
    share.num_negatives = wave.num_negatives();
    share.tile = tile_at(wave, params.wave, position, static_cast<int>(threadIdx.x) % 32);
    while (position < end) {
      const int tile_begin = wave.tile_begin(share.tile);
      const int tile_end = wave.tile_begin(share.tile + 1);
      if (position < tile_end) {
        share.begin = position - tile_begin;
        share.end = (tile_end < end ? tile_end : end) - tile_begin;
        if (params.wave.mask_labels) {
          share.span = params.schedule.spans[share.tile];
        } else {
          share.span = {wave.units(), wave.units(), 0, 0, 0, 0};
        }
        stream_share<Arithmetic, Shape, kKind, kGradient>(params, share);
        position = tile_begin + share.end;
        // The next tile is written to shared memory that slower warps may still read.
        __syncthreads();
      }
      ++share.tile;
    }
  } else {
    // plan_launch refuses this case; an empty kernel would leave arbitrary sums.
    device::trap();
  }
}

template <class Arithmetic, int kChannels>
StreamVariant select_variant(StreamKind kind, bool gradient) {
  using Shape = TileShape<Arithmetic, kChannels>;
  using Kernel = void (*)(StreamParams);
  Kernel kernel = nullptr;
  switch (kind) {
    case StreamKind::kBounded:
      kernel = gradient ? stream_kernel<Arithmetic, kChannels, StreamKind::kBounded, true>
                        : stream_kernel<Arithmetic, kChannels, StreamKind::kOnline, false>;
      break;
    case StreamKind::kOnline:
      kernel = gradient ? stream_kernel<Arithmetic, kChannels, StreamKind::kOnline, true>
                        : stream_kernel<Arithmetic, kChannels, StreamKind::kOnline, false>;
      break;
    case StreamKind::kGeneral:
      kernel = gradient ? stream_kernel<Arithmetic, kChannels, StreamKind::kGeneral, true>
                        : stream_kernel<Arithmetic, kChannels, StreamKind::kGeneral, false>;
      break;
    case StreamKind::kGiven:
      kernel = stream_kernel<Arithmetic, kChannels, StreamKind::kGiven, true>;
  }
  return {kernel,
          Shape::kThreads,
          Shape::kSharedBytes,
          Shape::kTileSlots,
          Shape::kUnitNegatives,
          kChannels,
          Arithmetic::kMinimumArchitecture / 10};
}

// All instances of one arithmetic. Each arithmetic has a separate file, so that they are compiled
// in parallel.
template <class Arithmetic>
StreamVariant select_variant(int channels, StreamKind kind, bool gradient) {
  if (channels <= 64) return select_variant<Arithmetic, 64>(kind, gradient);
  if (channels <= 128) return select_variant<Arithmetic, 128>(kind, gradient);
  return select_variant<Arithmetic, 256>(kind, gradient);
}

}  // namespace cac::cuda
