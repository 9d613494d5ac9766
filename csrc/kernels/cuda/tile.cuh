// A tile of anchors and units of negatives in shared memory: their layout, their loading, and the
// two matrix products over them.
#pragma once

#include "kernels/cuda/arithmetic.cuh"
#include "kernels/cuda/stream.h"
#include "kernels/row_math.h"

namespace cac::cuda {

// Sizes depend on the bytes of one row. Up to 256 bytes a warp has 32 slots, so that every fragment
// of negatives is used twice; with longer rows the weighted sums of 32 slots would not fit the
// registers. fp16 stays within the 64 KiB of sm_75, all else within the 99 KiB of sm_86; float32
// with 256 channels needs 96 KiB, so sm_75 does not run it (fits_device).
template <class Arithmetic, int kChannels_>
struct TileShape {
  using Element = typename Arithmetic::Element;
  static constexpr int kChannels = kChannels_;
  static constexpr int kRowBytes = kChannels * static_cast<int>(sizeof(Element));
  static constexpr int kWarps = 4;
  static constexpr int kThreads = 32 * kWarps;
  // Blocks of 16 slots a warp. Sums outside the tensor cores need registers for more accumulators.
  static constexpr int kBlocksOf16 =
      kRowBytes <= 256 && !Arithmetic::kSumsOutsideTensorCores ? 2 : 1;
  static constexpr int kWarpSlots = 16 * kBlocksOf16;
  static constexpr int kTileSlots = kWarps * kWarpSlots;
  static constexpr int kUnitNegatives = kRowBytes <= 256 ? 64 : 16384 / kRowBytes;
  static constexpr int kStages = kRowBytes <= 128 ? 3 : 2;
  static constexpr int kTileBytes = kTileSlots * kRowBytes;
  static constexpr int kStageBytes = kUnitNegatives * kRowBytes;
  static constexpr int kSharedBytes = kTileBytes + kStages * kStageBytes;
  static constexpr int kChunks = kRowBytes / 16;  // 16-byte chunks of a row
  static constexpr int kSteps = kRowBytes / 32;   // inner steps of the scores
  static constexpr int kColumnBlocks = kUnitNegatives / 8;
  static constexpr int kChannelBlocks = kChannels / 8;
};

// Rows follow one another. Their 16-byte chunks are permuted, so that the 8 rows of a matrix that
// ldmatrix reads lie in different banks: chunk c of row r is at place c ^ (r % 8).
template <class Shape>
__device__ __forceinline__ int swizzled(int row, int chunk) {
  return row * Shape::kRowBytes + ((chunk ^ (row & 7)) << 4);
}

// The address `chunks` (even) chunks after chunk 0 or 1 of a row. Rows begin at multiples of 128
// bytes, so that a step within 128 bytes is an exclusive or.
__device__ __forceinline__ device::SharedAddress further(device::SharedAddress address,
                                                         int chunks) {
  return (address ^ ((chunks & 7) << 4)) + chunks / 8 * 128;
}

// Starts the copy of one unit; rows beyond the last negative and padding channels become zero.
template <class Shape, bool kGather>
__device__ __forceinline__ void load_unit(const StreamParams& params, device::SharedAddress stage,
                                          int first_negative, int num_negatives) {
  constexpr int kRowsAtOnce = Shape::kThreads / Shape::kChunks;
  const ContrastiveProblem& problem = params.problem;
  const int row_bytes =
      static_cast<int>(problem.padded_channels) * static_cast<int>(sizeof(typename Shape::Element));
  const int chunk = static_cast<int>(threadIdx.x) % Shape::kChunks;
  const int first_row = static_cast<int>(threadIdx.x) / Shape::kChunks;
  const char* source = static_cast<const char*>(problem.negatives) + chunk * 16;
  const int64_t begin = static_cast<int64_t>(first_negative + first_row) * row_bytes;
  const int rows_left = chunk * 16 < row_bytes ? num_negatives - first_negative - first_row : 0;
  const device::SharedAddress destination = stage + swizzled<Shape>(first_row, chunk);
#pragma unroll
  for (int i = 0; i < Shape::kUnitNegatives / kRowsAtOnce; ++i) {
    const bool valid = i * kRowsAtOnce < rows_left;
    int64_t offset = begin + static_cast<int64_t>(i * kRowsAtOnce) * row_bytes;
    if (kGather && params.rows != nullptr && valid) {
      offset = params.rows[first_negative + first_row + i * kRowsAtOnce] * row_bytes;
    }
    // first_row < kRowsAtOnce, so the two terms of the row's number have no bit in common.
    device::copy_async_16(
        (destination ^ ((i * kRowsAtOnce & 7) << 4)) + i * kRowsAtOnce * Shape::kRowBytes,
        source + (valid ? offset : 0), valid);
  }
}

// Writes the rows of the warp's slots: unit length, rounded, zero for empty slots. The barrier
// before the first unit makes them visible.
template <class Shape, class Arithmetic>
__device__ __forceinline__ void load_anchors(const StreamParams& params, char* tile_memory,
                                             int first_slot, int warp, int lane) {
  using Element = typename Arithmetic::Element;
  constexpr int kLane = Shape::kChannels / 32;
  constexpr int kRowsAtOnce = 4;  // loads in flight hide each other's latency
  static_assert(Shape::kWarpSlots <= 32);
  const ContrastiveProblem& problem = params.problem;
  const int channels = static_cast<int>(problem.channels);
  const int num_active = *params.schedule.num_active;

  // Lane i finds the address of the row for the warp's slot i; 0 for an empty slot.
  unsigned long long own_row = 0;
  const int own_slot = first_slot + warp * Shape::kWarpSlots + lane;
  if (lane < Shape::kWarpSlots && own_slot < num_active) {
    const int64_t anchor = params.schedule.anchors[own_slot];
    const int view = anchor_view(problem, problem.direction[anchor]);
    const int64_t offset =
        anchor * problem.row_strides[view] * element_bytes(problem.feature_dtype);
    own_row = reinterpret_cast<unsigned long long>(problem.features[view]) + offset;
  }
#pragma unroll 1
  for (int first = 0; first < Shape::kWarpSlots; first += kRowsAtOnce) {
    float values[kRowsAtOnce][kLane];
    visit_type(problem.feature_dtype, [&](auto stored) {
      using Stored = decltype(stored);
      using Bits = typename Stored::Bits;
      Bits bits[kRowsAtOnce][kLane];
#pragma unroll
      for (int r = 0; r < kRowsAtOnce; ++r) {
        const auto* row =
            reinterpret_cast<const Bits*>(__shfl_sync(device::kFullWarp, own_row, first + r));
        load_bits(bits[r], row, row == nullptr ? 0 : channels, lane);
      }
#pragma unroll
      for (int r = 0; r < kRowsAtOnce; ++r) {
#pragma unroll
        for (int i = 0; i < kLane; ++i) values[r][i] = Stored::decode(bits[r][i]);
      }
    });
    if (problem.normalize) {
      RowNorm norms[kRowsAtOnce];
      normalize_rows(values, norms);
    }
#pragma unroll
    for (int r = 0; r < kRowsAtOnce; ++r) {
      const int row = warp * Shape::kWarpSlots + first + r;
#pragma unroll
      for (int i = 0; i < kLane; ++i) {
        const int byte = (lane + 32 * i) * static_cast<int>(sizeof(Element));
        *reinterpret_cast<Element*>(tile_memory + swizzled<Shape>(row, byte / 16) + byte % 16) =
            Arithmetic::round(values[r][i]);
      }
    }
  }
}

// scores = A N^T of the warp's slots and one unit.
template <class Shape, class Arithmetic>
__device__ __forceinline__ void multiply_scores(
    float (&scores)[Shape::kBlocksOf16][Shape::kColumnBlocks][4], device::SharedAddress tile,
    device::SharedAddress stage, int warp, int lane) {
  constexpr int kStepsOfSum = Arithmetic::kSumsOutsideTensorCores ? 4 : Shape::kSteps;
  const device::SharedAddress anchors =
      tile + swizzled<Shape>(warp * Shape::kWarpSlots + lane % 16, lane / 16);
  const device::SharedAddress negatives =
      stage + swizzled<Shape>(lane % 8 + lane / 16 * 8, lane / 8 % 2);
#pragma unroll
  for (int first = 0; first < Shape::kSteps; first += kStepsOfSum) {
    float sums[Shape::kBlocksOf16][Shape::kColumnBlocks][4] = {};
#pragma unroll
    for (int step = first; step < first + kStepsOfSum; ++step) {
      uint32_t a[Shape::kBlocksOf16][4];
#pragma unroll
      for (int m = 0; m < Shape::kBlocksOf16; ++m) {
        device::load_matrices(a[m], further(anchors, 2 * step) + 16 * m * Shape::kRowBytes);
      }
#pragma unroll
      for (int n = 0; n < Shape::kColumnBlocks; n += 2) {
        uint32_t b[4];
        device::load_matrices(b, further(negatives, 2 * step) + 8 * n * Shape::kRowBytes);
#pragma unroll
        for (int m = 0; m < Shape::kBlocksOf16; ++m) {
          Arithmetic::multiply(sums[m][n], a[m], b[0], b[1]);
          Arithmetic::multiply(sums[m][n + 1], a[m], b[2], b[3]);
        }
      }
    }
#pragma unroll
    for (int m = 0; m < Shape::kBlocksOf16; ++m) {
#pragma unroll
      for (int n = 0; n < Shape::kColumnBlocks; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          scores[m][n][i] = first == 0 ? sums[m][n][i] : scores[m][n][i] + sums[m][n][i];
        }
      }
    }
  }
}

// weighted += P N, where P are the probabilities that replaced the scores.
template <class Shape, class Arithmetic>
__device__ __forceinline__ void add_weighted(
    float (&weighted)[Shape::kBlocksOf16][Shape::kChannelBlocks][4],
    const float (&p)[Shape::kBlocksOf16][Shape::kColumnBlocks][4], device::SharedAddress stage,
    int lane) {
  if constexpr (sizeof(typename Arithmetic::Element) == 2) {
    const device::SharedAddress negatives = stage + swizzled<Shape>(lane % 16, lane / 16);
#pragma unroll
    for (int n = 0; n < Shape::kColumnBlocks; n += 2) {
      uint32_t a[Shape::kBlocksOf16][4];
#pragma unroll
      for (int m = 0; m < Shape::kBlocksOf16; ++m) {
        a[m][0] = Arithmetic::pack(p[m][n][0], p[m][n][1]);
        a[m][1] = Arithmetic::pack(p[m][n][2], p[m][n][3]);
        a[m][2] = Arithmetic::pack(p[m][n + 1][0], p[m][n + 1][1]);
        a[m][3] = Arithmetic::pack(p[m][n + 1][2], p[m][n + 1][3]);
      }
#pragma unroll
      for (int c = 0; c < Shape::kChannelBlocks; c += 2) {
        uint32_t b[4];
        device::load_matrices_transposed(b, further(negatives, c) + 8 * n * Shape::kRowBytes);
#pragma unroll
        for (int m = 0; m < Shape::kBlocksOf16; ++m) {
          Arithmetic::multiply(weighted[m][c], a[m], b[0], b[1]);
          Arithmetic::multiply(weighted[m][c + 1], a[m], b[2], b[3]);
        }
      }
    }
  } else {
    // ldmatrix does not transpose 32-bit elements, so these are read one by one. Any order of
    // 8 negatives will do: with negative 2i as the i-th and 2i + 1 as the (i+4)-th the
    // accumulators already form the operand, and the reads use all banks.
    const int group = lane / 4;
    const int pair = lane % 4;
    const device::SharedAddress even = stage + swizzled<Shape>(2 * pair, group / 4) + group % 4 * 4;
    const device::SharedAddress odd =
        stage + swizzled<Shape>(2 * pair + 1, group / 4) + group % 4 * 4;
#pragma unroll
    for (int c = 0; c < Shape::kChannelBlocks; ++c) {
      float sums[Shape::kBlocksOf16][4] = {};
#pragma unroll
      for (int n = 0; n < Shape::kColumnBlocks; ++n) {
        const int rows = 8 * n * Shape::kRowBytes;
        const uint32_t b0 = device::load_shared(further(even, 2 * c) + rows);
        const uint32_t b1 = device::load_shared(further(odd, 2 * c) + rows);
#pragma unroll
        for (int m = 0; m < Shape::kBlocksOf16; ++m) {
          const uint32_t a[4] = {device::float_bits(p[m][n][0]), device::float_bits(p[m][n][2]),
                                 device::float_bits(p[m][n][1]), device::float_bits(p[m][n][3])};
          Arithmetic::multiply(Arithmetic::kSumsOutsideTensorCores ? sums[m] : weighted[m][c], a,
                               b0, b1);
        }
      }
      if constexpr (Arithmetic::kSumsOutsideTensorCores) {
#pragma unroll
        for (int m = 0; m < Shape::kBlocksOf16; ++m) {
#pragma unroll
          for (int i = 0; i < 4; ++i) weighted[m][c][i] += sums[m][i];
        }
      }
    }
  }
}

// Whether this thread's scores are all finite.
template <class Shape>
__device__ __forceinline__ bool finite_scores(
    const float (&scores)[Shape::kBlocksOf16][Shape::kColumnBlocks][4]) {
  float zeros[4] = {};
#pragma unroll
  for (int m = 0; m < Shape::kBlocksOf16; ++m) {
#pragma unroll
    for (int n = 0; n < Shape::kColumnBlocks; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) zeros[i] = fmaf(scores[m][n][i], 0.0f, zeros[i]);
    }
  }
  return zeros[0] + zeros[1] + zeros[2] + zeros[3] == 0.0f;
}

// Negatives inside a slot's interval, and those beyond the last one, get the score -inf. kGeneral:
// or those outside of it, and the excluded ones.
template <class Shape, bool kGeneral>
__device__ __forceinline__ void mask_scores(
    float (&scores)[Shape::kBlocksOf16][Shape::kColumnBlocks][4], const StreamParams& params,
    int first_slot, int first_negative, int num_negatives, int warp, int lane) {
  const int num_active = *params.schedule.num_active;  // read here: the loop has no register for it
#pragma unroll
  for (int m = 0; m < Shape::kBlocksOf16; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int slot = first_slot + warp * Shape::kWarpSlots + 16 * m + 8 * half + lane / 4;
      int2 same_class = make_int2(0, 0);
      bool counts = false;
      int64_t excluded = -1;
      const bool is_anchor = params.wave.mask_labels && slot < num_active;
      if (is_anchor) same_class = params.schedule.intervals[slot];
      if constexpr (kGeneral) {
        counts = is_anchor && params.problem.interval_counts;
        if (is_anchor && params.problem.excluded != nullptr) {
          excluded = params.problem.excluded[params.schedule.anchors[slot]];
        }
      }
#pragma unroll
      for (int n = 0; n < Shape::kColumnBlocks; ++n) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int negative = first_negative + 8 * n + lane % 4 * 2 + i;
          bool masked = negative >= same_class.x && negative < same_class.y;
          if constexpr (kGeneral) {
            masked = masked != counts;
            if (excluded >= 0 && negative < num_negatives) {
              const int64_t id = params.problem.column_ids == nullptr
                                     ? negative
                                     : params.problem.column_ids[negative];
              masked = masked || id == excluded;
            }
          }
          if (masked || negative >= num_negatives) {
            scores[m][n][2 * half + i] = -INFINITY;
          }
        }
      }
    }
  }
}

// Sets the unit's rows that hold nan or infinity to zero, because a probability of 0 times them
// would be nan. A slot that meets such a row unmasked has the nan in its sum already.
template <class Shape, class Arithmetic>
__device__ __forceinline__ void clear_unbounded_rows(device::SharedAddress stage) {
  char* memory = device::dynamic_shared_memory();
  memory += stage - device::shared_address(memory);
  constexpr int kWords = Shape::kRowBytes / 4;
  const int row = static_cast<int>(threadIdx.x);
  static_assert(Shape::kUnitNegatives <= Shape::kThreads);
  if (row < Shape::kUnitNegatives) {
    auto* words = reinterpret_cast<uint32_t*>(memory + row * Shape::kRowBytes);
    bool finite = true;
#pragma unroll 1
    for (int i = 0; i < kWords; ++i) finite &= Arithmetic::all_finite(words[i]);
#pragma unroll 1
    for (int i = 0; i < kWords && !finite; ++i) words[i] = 0;
  }
}

}  // namespace cac::cuda
