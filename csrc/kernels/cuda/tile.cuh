// A tile of anchors and units of negatives in shared memory: their layout, their loading, and the
// two matrix products over them.
#pragma once

#include "kernels/cuda/arithmetic.cuh"
#include "kernels/cuda/stream.h"
#include "kernels/row_math.h"

namespace cac::cuda {

// Up to 256 channels, warps divide the slots of a tile: each multiplies its own with whole rows.
//
// Sizes depend on the bytes of one row. Up to 256 bytes a warp has 32 slots, so that every fragment
// of negatives is used twice; with longer rows the weighted sums of 32 slots would not fit the
// registers. fp16 stays within the 64 KiB of sm_75, all else within the 99 KiB of sm_86; float32
// with 256 channels needs 96 KiB, so sm_75 does not run it (fits_device).
template <class Arithmetic, int kChannels_>
struct TileShape {
  using Element = typename Arithmetic::Element;
  static constexpr bool kWide = false;
  static constexpr int kMinimumArchitecture = Arithmetic::kMinimumArchitecture;
  static constexpr int kChannels = kChannels_;  // that a warp multiplies
  static constexpr int kMaxRowChannels = kChannels;
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
  static constexpr int kAnchorRowsAtOnce = 4;  // loads in flight hide each other's latency
};

// Beyond 256 channels, warps divide the channels instead: each multiplies 128 channels of all slots
// (wide.cuh). A tile has as many slots as one warp's registers hold sums for.
template <class Arithmetic>
struct WideTileShape {
  using Element = typename Arithmetic::Element;
  static constexpr bool kWide = true;
  // Without matrix units for float32 the products would take longer than those of plain ATen.
  static constexpr int kMinimumArchitecture =
      sizeof(Element) == 4 ? 800 : Arithmetic::kMinimumArchitecture;
  static constexpr int kChannels = 128;  // that a warp multiplies
  static constexpr int kMaxWarps = 8;
  static constexpr int kThreads = 32 * kMaxWarps;  // at most
  static constexpr int kMaxRowChannels = kMaxWarps * kChannels;
  static constexpr int kRowBytes = kChannels * static_cast<int>(sizeof(Element));
  static constexpr int kBlocksOf16 = sizeof(Element) == 2 ? 2 : 1;
  static constexpr int kWarpSlots = 16 * kBlocksOf16;
  static constexpr int kTileSlots = kWarpSlots;
  // A strip: as many negatives as the second product of 16-bit elements takes at a time. A unit has
  // one or two strips, which the launch decides (wide.cuh).
  static constexpr int kUnitNegatives = 16;
  static constexpr int kMaxStrips = 2;
  static constexpr int kStripBytes = kUnitNegatives * kRowBytes;
  static constexpr int kChunks = kRowBytes / 16;
  static constexpr int kSteps = kRowBytes / 32;
  static constexpr int kColumnBlocks = kUnitNegatives / 8;
  static constexpr int kChannelBlocks = kChannels / 8;
  static constexpr int kAnchorRowsAtOnce = 2;
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

// Starts the copy of `kRows` negatives by `kThreads` threads, of the channels from byte
// `first_byte` on; rows beyond the last negative and padding channels become zero.
template <class Shape, int kThreads, int kRows, bool kGather>
__device__ __forceinline__ void load_negatives(const StreamParams& params,
                                               device::SharedAddress stage, int thread,
                                               int first_byte, int first_negative,
                                               int num_negatives) {
  constexpr int kRowsAtOnce = kThreads / Shape::kChunks;
  const ContrastiveProblem& problem = params.problem;
  const int row_bytes =
      static_cast<int>(problem.padded_channels) * static_cast<int>(sizeof(typename Shape::Element));
  const int chunk = thread % Shape::kChunks;
  const int first_row = thread / Shape::kChunks;
  const int byte = first_byte + chunk * 16;
  const char* source = static_cast<const char*>(problem.negatives) + byte;
  const int64_t begin = static_cast<int64_t>(first_negative + first_row) * row_bytes;
  const int rows_left = byte < row_bytes ? num_negatives - first_negative - first_row : 0;
  const device::SharedAddress destination = stage + swizzled<Shape>(first_row, chunk);
#pragma unroll
  for (int i = 0; i < kRows / kRowsAtOnce; ++i) {
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

// Writes rows of anchors: unit length, rounded, zero for empty slots; a barrier makes them visible.
// A warp writes those of its own slots or, in wide tiles, every `warps`-th pair of the tile's rows;
// there the channels of each warp lie `part_bytes` behind those of the one before.
template <class Shape, class Arithmetic>
__device__ __forceinline__ void load_anchors(const StreamParams& params, char* tile_memory,
                                             int first_slot, int warp, int lane, int warps,
                                             int part_bytes) {
  using Element = typename Arithmetic::Element;
  constexpr int kLane = Shape::kMaxRowChannels / 32;
  constexpr int kLaneOfPart = Shape::kChannels / 32;
  constexpr int kRowsAtOnce = Shape::kAnchorRowsAtOnce;
  static_assert(Shape::kWarpSlots <= 32);
  const ContrastiveProblem& problem = params.problem;
  const int channels = static_cast<int>(problem.channels);
  const int num_active = *params.schedule.num_active;
  const int first_row = Shape::kWide ? 0 : warp * Shape::kWarpSlots;

  // Lane i finds the address of row first_row + i; 0 for an empty slot.
  unsigned long long own_row = 0;
  const int own_slot = first_slot + first_row + lane;
  if (lane < Shape::kWarpSlots && own_slot < num_active) {
    const int64_t anchor = params.schedule.anchors[own_slot];
    const int view = anchor_view(problem, problem.direction[anchor]);
    const int64_t offset =
        anchor * problem.row_strides[view] * element_bytes(problem.feature_dtype);
    own_row = reinterpret_cast<unsigned long long>(problem.features[view]) + offset;
  }
  const int begin = Shape::kWide ? warp * kRowsAtOnce : 0;
  const int step = Shape::kWide ? warps * kRowsAtOnce : kRowsAtOnce;
#pragma unroll 1
  for (int first = begin; first < Shape::kWarpSlots; first += step) {
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
      const int row = first_row + first + r;
#pragma unroll
      for (int i = 0; i < kLane; ++i) {
        const int byte = (lane + 32 * (i % kLaneOfPart)) * static_cast<int>(sizeof(Element));
        if (!Shape::kWide || i / kLaneOfPart < warps) {
          *reinterpret_cast<Element*>(tile_memory + i / kLaneOfPart * part_bytes +
                                      swizzled<Shape>(row, byte / 16) + byte % 16) =
              Arithmetic::round(values[r][i]);
        }
      }
    }
  }
}

// The first operand of the scores, as multiply_scores reads it: from shared memory at every use, or
// kept in registers. `first_row`: of the warp, among the rows at `rows`.
template <class Shape>
class AnchorsInMemory {
 public:
  __device__ __forceinline__ AnchorsInMemory(device::SharedAddress rows, int first_row, int lane)
      : address_(rows + swizzled<Shape>(first_row + lane % 16, lane / 16)) {}

  __device__ __forceinline__ void load(uint32_t (&a)[4], int m, int step) const {
    device::load_matrices(a, further(address_, 2 * step) + 16 * m * Shape::kRowBytes);
  }

 private:
  device::SharedAddress address_;
};

template <class Shape>
class AnchorsInRegisters {
 public:
  __device__ __forceinline__ explicit AnchorsInRegisters(const AnchorsInMemory<Shape>& anchors) {
#pragma unroll
    for (int m = 0; m < Shape::kBlocksOf16; ++m) {
#pragma unroll
      for (int step = 0; step < Shape::kSteps; ++step) anchors.load(fragments_[m][step], m, step);
    }
  }

  __device__ __forceinline__ void load(uint32_t (&a)[4], int m, int step) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) a[i] = fragments_[m][step][i];
  }

 private:
  uint32_t fragments_[Shape::kBlocksOf16][Shape::kSteps][4];
};

// scores = A N^T of the warp's slots and one unit or strip.
template <class Shape, class Arithmetic, class Anchors>
__device__ __forceinline__ void multiply_scores(
    float (&scores)[Shape::kBlocksOf16][Shape::kColumnBlocks][4], const Anchors& anchors,
    device::SharedAddress stage, int lane) {
  constexpr int kStepsOfSum = Arithmetic::kSumsOutsideTensorCores ? 4 : Shape::kSteps;
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
        anchors.load(a[m], m, step);
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

// Sets a row to zero if it holds nan or infinity, because a probability of 0 times them would be
// nan. A slot that meets such a row unmasked has the nan in its sum already.
template <class Shape, class Arithmetic>
__device__ __forceinline__ void clear_unbounded_row(device::SharedAddress stage, int row) {
  constexpr int kWords = Shape::kRowBytes / 4;
  char* memory = device::dynamic_shared_memory();
  memory += stage - device::shared_address(memory);
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
