// One pass over the negatives for rows of more than 256 channels, whose weighted sums do not fit
// the registers of one warp.
//
// Warp w multiplies the channels [128 w, 128 w + 128) of all slots of the tile, so that a block has
// as many warps as the rows have such parts:
//
//     its part of the scores    ->  shared memory, barrier
//     a few slots of the unit   ->  sums of all parts, masks, probabilities to shared memory,
//     barrier all probabilities         ->  its part of weighted += P N
//
// A warp copies and reads its own part of the negatives alone, so both products need no barrier,
// and keeps its part of the anchors in registers. The parts are added in the order of the warps.
#pragma once

#include "kernels/cuda/scores.cuh"
#include "kernels/cuda/tile.cuh"

namespace cac::cuda {

// Shared memory of a block: for each warp the buffers (stages) of its part of the negatives, which
// hold its part of the anchors first; the scores and probabilities of a unit; the state of each
// slot.
//
// Scores are pairs of neighboring columns in the order in which a warp's accumulators hold them.
template <class Shape>
struct WideMemory {
  int warps;
  int strips;  // of a unit
  int stages;

  static constexpr int kStripPairs = Shape::kTileSlots * Shape::kUnitNegatives / 2;
  // Lanes that share the columns of a slot when its scores are added up.
  static constexpr int kSlotLanes = 8;
  static constexpr int kStateFloats = Shape::kTileSlots * kSlotLanes;

  __host__ __device__ constexpr int stage_bytes() const { return strips * Shape::kStripBytes; }
  __host__ __device__ constexpr int part_bytes() const { return stages * stage_bytes(); }
  __host__ __device__ constexpr int unit_pairs() const { return strips * kStripPairs; }

  // Offsets, and the end.
  __host__ __device__ constexpr int parts_of_scores() const { return warps * part_bytes(); }
  __host__ __device__ constexpr int probabilities() const {
    return parts_of_scores() + warps * unit_pairs() * 8;
  }
  __host__ __device__ constexpr int sums() const { return probabilities() + unit_pairs() * 8; }
  __host__ __device__ constexpr int shifts() const { return sums() + kStateFloats * 4; }
  __host__ __device__ constexpr int margins() const { return shifts() + kStateFloats * 4; }
  __host__ __device__ constexpr int rescales() const { return margins() + kStateFloats * 4; }
  __host__ __device__ constexpr int bytes() const { return rescales() + Shape::kTileSlots * 4; }

  // Longer units need fewer barriers, a second stage lets copies and products overlap. Up to 4
  // warps two blocks fit the registers of a multiprocessor, and shared memory is left for both. If
  // nothing fits, the smallest one (fits_device).
  static WideMemory choose(int warps, int max_shared_bytes) {
    const int blocks = warps <= 4 ? 2 : 1;
    const WideMemory longest = {warps, Shape::kMaxStrips, 2};
    if (blocks * (longest.bytes() + 1024) <= max_shared_bytes + 1024) return longest;
    const WideMemory shorter = {warps, 1, 2};
    // One stage of 16 negatives cannot hold the anchors of 32 slots.
    if (shorter.bytes() <= max_shared_bytes || Shape::kTileSlots > Shape::kUnitNegatives) {
      return shorter;
    }
    return {warps, 1, 1};
  }
};

// Leaves the sums of this worker's share of one tile in `partials`.
template <class Arithmetic, class Shape, StreamKind kKind, bool kGradient>
__device__ __forceinline__ void stream_wide_share(const StreamParams& params,
                                                  const TileShare& share) {
  constexpr bool kOnline = kKind == StreamKind::kOnline;
  constexpr bool kMasksAll = kKind != StreamKind::kBounded;
  constexpr int kCount = 2 * Shape::kMaxStrips;  // scores of a slot that a lane adds up
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int unit_negatives = params.wave.unit_negatives;
  const WideMemory<Shape> layout = {static_cast<int>(blockDim.x) / 32,
                                    unit_negatives / Shape::kUnitNegatives, params.stages};
  char* memory = device::dynamic_shared_memory();
  const device::SharedAddress part = device::shared_address(memory) + warp * layout.part_bytes();
  auto* const parts_of_scores = reinterpret_cast<float2*>(memory + layout.parts_of_scores());
  auto* const probabilities = reinterpret_cast<float2*>(memory + layout.probabilities());
  auto* const sums = reinterpret_cast<float*>(memory + layout.sums());
  auto* const shifts = reinterpret_cast<float*>(memory + layout.shifts());
  auto* const margins = reinterpret_cast<float*>(memory + layout.margins());
  auto* const rescales = reinterpret_cast<float*>(memory + layout.rescales());
  const float scale = scale_of<kMasksAll>(params);

  // Calls visit(slot, state, place) for the slots of the tile that this warp adds up, 4 at a time:
  // `state` is the place of this lane in the arrays of state, `place` that of its first pair of
  // columns in a strip. The pair begins at this column:
  const int column = lane / 16 * 8 + lane % 4 * 2;
  const auto for_each_slot = [&](auto visit) {
#pragma unroll 1
    for (int group = warp; group < Shape::kTileSlots / 4; group += layout.warps) {
      const int slot = 4 * group + lane % 16 / 4;
      const int fragment = (slot / 16 * Shape::kColumnBlocks + lane / 16) * 2 + slot / 8 % 2;
      visit(slot, group * 32 + lane, fragment * 32 + slot % 8 * 4 + lane % 4);
    }
  };
  const auto load_unit = [&](int unit) {
#pragma unroll 1
    for (int strip = 0; strip < layout.strips; ++strip) {
      load_negatives<Shape, 32, Shape::kUnitNegatives, !kGradient>(
          params, part + unit % layout.stages * layout.stage_bytes() + strip * Shape::kStripBytes,
          lane, warp * Shape::kRowBytes,
          share.first_negative(unit, unit_negatives) + strip * Shape::kUnitNegatives,
          share.num_negatives);
    }
  };

  load_anchors<Shape, Arithmetic>(params, memory, share.tile * Shape::kTileSlots, warp, lane,
                                  layout.warps, layout.part_bytes());
  for_each_slot([&](int slot, int state, int) {
    sums[state] = margins[state] = 0.0f;
    // |cos| <= 1 bounds the scores of unit vectors.
    shifts[state] = kOnline ? -INFINITY : scale;
    if constexpr (kKind == StreamKind::kGiven) {
      shifts[state] = given_shift(params, share.tile * Shape::kTileSlots + slot);
    }
  });
  __syncthreads();
  const AnchorsInRegisters<Shape> anchors(AnchorsInMemory<Shape>(part, 0, lane));
  // Now all lanes have read the anchors that the copies overwrite.
  __syncwarp();
  for (int ahead = 0; ahead < layout.stages; ++ahead) {
    if (share.begin + ahead < share.end) load_unit(share.begin + ahead);
    device::commit_copies();
  }

  float weighted[Shape::kBlocksOf16][kGradient ? Shape::kChannelBlocks : 1][4];
#pragma unroll
  for (int m = 0; m < Shape::kBlocksOf16; ++m) {
#pragma unroll
    for (int c = 0; c < (kGradient ? Shape::kChannelBlocks : 1); ++c) {
#pragma unroll
      for (int i = 0; i < 4; ++i) weighted[m][c][i] = 0.0f;
    }
  }

#pragma unroll 1
  for (int unit = share.begin; unit < share.end; ++unit) {
    if (layout.stages == 1) {
      device::wait_for_copies<0>();
    } else {
      device::wait_for_copies<1>();
    }
    __syncwarp();
    const device::SharedAddress stage = part + unit % layout.stages * layout.stage_bytes();
    const int first_negative = share.first_negative(unit, unit_negatives);
    const bool masked = may_be_masked<kMasksAll>(params, share, first_negative, unit_negatives);

#pragma unroll 1
    for (int strip = 0; strip < layout.strips; ++strip) {
      float scores[Shape::kBlocksOf16][Shape::kColumnBlocks][4];
      const device::SharedAddress negatives = stage + strip * Shape::kStripBytes;
      multiply_scores<Shape, Arithmetic>(scores, anchors, negatives, lane);
      float2* target = parts_of_scores + warp * layout.unit_pairs() +
                       strip * WideMemory<Shape>::kStripPairs + lane;
#pragma unroll
      for (int m = 0; m < Shape::kBlocksOf16; ++m) {
#pragma unroll
        for (int n = 0; n < Shape::kColumnBlocks; ++n) {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            target[((m * Shape::kColumnBlocks + n) * 2 + half) * 32] =
                make_float2(scores[m][n][2 * half], scores[m][n][2 * half + 1]);
          }
        }
      }
      // What is not finite in this part of a row shows in this part of its scores.
      if (kGradient && masked &&
          __ballot_sync(device::kFullWarp, !finite_scores<Shape>(scores)) != 0) {
        clear_unbounded_row<Shape, Arithmetic>(negatives, lane);
        __syncwarp();
      }
    }
    // Now all parts of the scores are there, and all warps are done with the last probabilities.
    __syncthreads();

    for_each_slot([&](int slot, int state, int place) {
      float scores[kCount];
#pragma unroll
      for (int strip = 0; strip < Shape::kMaxStrips; ++strip) {
        scores[2 * strip] = scores[2 * strip + 1] = -INFINITY;
        if (strip < layout.strips) {
          const float2* from = parts_of_scores + strip * WideMemory<Shape>::kStripPairs + place;
          float2 parts[Shape::kMaxWarps];
#pragma unroll
          for (int i = 0; i < Shape::kMaxWarps; ++i) {
            if (i < layout.warps) parts[i] = from[i * layout.unit_pairs()];
          }
          scores[2 * strip] = parts[0].x;
          scores[2 * strip + 1] = parts[0].y;
#pragma unroll
          for (int i = 1; i < Shape::kMaxWarps; ++i) {
            if (i < layout.warps) {
              scores[2 * strip] += parts[i].x;
              scores[2 * strip + 1] += parts[i].y;
            }
          }
        }
      }
      const auto negative_of = [&](int i) {
        return first_negative + i / 2 * Shape::kUnitNegatives + column + i % 2;
      };
      if (masked) {
        const SlotMask<kMasksAll> mask(params, share.tile * Shape::kTileSlots + slot,
                                       *params.schedule.num_active);
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
          if (mask.masks(negative_of(i), share.num_negatives)) scores[i] = -INFINITY;
        }
      }
      if constexpr (kKind == StreamKind::kGiven) {
        float sum = sums[state];
        float margin = margins[state];
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
          replace_by_slope<Arithmetic>(
              scores[i], sum, margin, params.problem, scale, shifts[state],
              column_of(params.problem, negative_of(i), share.num_negatives));
        }
        sums[state] = sum;
        margins[state] = margin;
      } else {
        const auto score = [&](int i) -> float& { return scores[i]; };
        float shift = shifts[state];
        Powers powers = {scale, shift - Arithmetic::kExponentOffset, 1.0f};
        if constexpr (kOnline) {
          powers = raise_shift<Arithmetic, kCount>(
              score,
              [](float x) {
                x = fmaxf(x, __shfl_xor_sync(device::kFullWarp, x, 1));
                x = fmaxf(x, __shfl_xor_sync(device::kFullWarp, x, 2));
                return fmaxf(x, __shfl_xor_sync(device::kFullWarp, x, 16));
              },
              scale, shift);
          shifts[state] = shift;
          if (lane < 16 && lane % 4 == 0) rescales[slot] = powers.rescale;
        }
        sums[state] = sums[state] * powers.rescale + replace_by_powers<kCount>(score, powers);
      }
      if constexpr (kGradient) {
#pragma unroll
        for (int strip = 0; strip < Shape::kMaxStrips; ++strip) {
          if (strip < layout.strips) {
            probabilities[strip * WideMemory<Shape>::kStripPairs + place] =
                make_float2(scores[2 * strip], scores[2 * strip + 1]);
          }
        }
      }
    });
    // Now all probabilities are there, and all parts of the scores have been read.
    __syncthreads();

    if constexpr (kGradient) {
      if constexpr (kOnline) {
#pragma unroll
        for (int m = 0; m < Shape::kBlocksOf16; ++m) {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const float rescale = rescales[16 * m + 8 * half + lane / 4];
#pragma unroll
            for (int c = 0; c < Shape::kChannelBlocks; ++c) {
              weighted[m][c][2 * half] *= rescale;
              weighted[m][c][2 * half + 1] *= rescale;
            }
          }
        }
      }
#pragma unroll 1
      for (int strip = 0; strip < layout.strips; ++strip) {
        float p[Shape::kBlocksOf16][Shape::kColumnBlocks][4];
        const float2* from = probabilities + strip * WideMemory<Shape>::kStripPairs + lane;
#pragma unroll
        for (int m = 0; m < Shape::kBlocksOf16; ++m) {
#pragma unroll
          for (int n = 0; n < Shape::kColumnBlocks; ++n) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
              const float2 pair = from[((m * Shape::kColumnBlocks + n) * 2 + half) * 32];
              p[m][n][2 * half] = pair.x;
              p[m][n][2 * half + 1] = pair.y;
            }
          }
        }
        add_weighted<Shape, Arithmetic>(weighted, p, stage + strip * Shape::kStripBytes, lane);
      }
    }
    // Now all lanes are done with the stage.
    __syncwarp();
    if (unit + layout.stages < share.end) load_unit(unit + layout.stages);
    device::commit_copies();
  }
  device::wait_for_copies<0>();

  const int partial = Wave::partial(params.wave, static_cast<int>(blockIdx.x), share.tile);
  const int64_t first_slot = static_cast<int64_t>(partial) * Shape::kTileSlots;
  constexpr float kUnscaled = 1.0f / (1 << Arithmetic::kExponentOffset);
  const auto sum_of_slot = [](float x) {
    x += __shfl_xor_sync(device::kFullWarp, x, 1);
    x += __shfl_xor_sync(device::kFullWarp, x, 2);
    return x + __shfl_xor_sync(device::kFullWarp, x, 16);
  };
  for_each_slot([&](int slot, int state, int) {
    const float sum = sum_of_slot(sums[state]);
    const bool writes = lane < 16 && lane % 4 == 0;
    if constexpr (kKind == StreamKind::kGiven) {
      const float margin = sum_of_slot(margins[state]);
      if (writes) {
        params.partials.shifts[first_slot + slot] = 0.0f;
        params.partials.sums[first_slot + slot] = given_sum(params, sum);
        params.partials.margins[first_slot + slot] = margin;
      }
    } else if (writes) {
      params.partials.shifts[first_slot + slot] = shifts[state];
      params.partials.sums[first_slot + slot] = sum * kUnscaled;
    }
  });
  if constexpr (kGradient) {
    const int row_channels = layout.warps * Shape::kChannels;
#pragma unroll
    for (int m = 0; m < Shape::kBlocksOf16; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int slot = 16 * m + 8 * half + lane / 4;
        float* target = params.partials.weighted + (first_slot + slot) * row_channels +
                        warp * Shape::kChannels + lane % 4 * 2;
#pragma unroll
        for (int c = 0; c < Shape::kChannelBlocks; ++c) {
          *reinterpret_cast<float2*>(target + 8 * c) = make_float2(
              weighted[m][c][2 * half] * kUnscaled, weighted[m][c][2 * half + 1] * kUnscaled);
        }
      }
    }
  }
}

}  // namespace cac::cuda
