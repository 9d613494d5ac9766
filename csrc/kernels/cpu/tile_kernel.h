// The innermost piece of the CPU path: a few tiles of anchors against a range of negatives.
//
// A tile is `lanes` anchors laid side by side, so that one vector register holds the same channel
// (or the same negative's probability) of neighbouring anchors. Both matrix products then read the
// negatives as they lie in memory, and each row of negatives loaded for S = N A^T serves
// O^T += N^T P as well.
//
// The kernel is compiled once per instruction set, from the same sources, with that set's compiler
// flags; tile_kernel.cpp picks one at run time. Headers included by those files must not call
// inline functions of the standard library: the linker would keep one copy of each, possibly the
// one with instructions this processor lacks.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/contrastive.h"

namespace cac::cpu {

// How the factors of the two products are multiplied; sums are float32, for kFloat64 float64.
enum class Arithmetic {
  kFloat64,
  kFloat32,        // or sums of three bfloat16, which are as accurate for rows of ordinary length
  kVectorFloat32,  // float32 itself, for rows so short that parts of their elements are subnormal
  kSplitBFloat16,  // float32 as a sum of two bfloat16, products within 2^-15 (see bf16_isa.h)
  kBFloat16,
};

// Rows of negatives that a tile can leave out or must look at lane by lane.
struct TileMask {
  int32_t skip_begin, skip_end;      // masked for every lane of the tile
  int32_t masked_begin, masked_end;  // masked for at least one lane
};

enum class TileMode {
  kBoundedShift,  // shift is zero: no logit is large enough to need one
  kOnlineMax,     // shift is the running maximum
  kMaxOnly,       // nothing but the running maximum, masks ignored
};

struct TileGroup {
  int num_tiles;
  const void* anchors;         // [tiles][channels x lanes], packed as TileKernel says
  const TileMask* masks;       // [tiles]
  const int32_t* lane_begin;   // [tiles][lanes] same-class rows of the lane's anchor
  const int32_t* lane_end;     // [tiles][lanes]
  const void* negatives;       // [N, negative_channels]
  int64_t negative_channels;   // as the negatives are padded
  int64_t channels;            // the next multiple of channel_multiple
  int32_t row_begin, row_end;  // this task's share of the negatives
  TileMode mode;
  bool with_gradient;
  // Accumulator type of the kernel; logits are in units of log 2 (the anchors carry log2(e) / tau).
  void* shift;     // [tiles][lanes], in and out
  double* sum;     // [tiles][lanes] sum of exp2(logit - shift), out
  void* weighted;  // [tiles][channels][lanes] sum of exp2(logit - shift) n, out
  void* scratch;   // scratch_bytes(channels), 64-byte aligned
};

struct TileKernel {
  const char* instruction_set;
  DType element;         // type of negatives
  DType anchor;          // type of packed anchors
  DType accumulator;     // type of shift and weighted
  int lanes;             // anchors in a tile
  int anchor_parts;      // more than 1: anchors are followed by what rounding them left over
  int channel_pairs;     // 1: anchors packed [C][lanes]; 2: [C / 2][lanes][2]
  int channel_multiple;  // of anchors and, unless they are copied in blocks, of negatives
  int row_block;         // shares of the negatives begin at multiples of this
  size_t (*scratch_bytes)(int64_t channels);
  void (*run)(const TileGroup& group);
};

// One per source file tile_<set>.cpp; null where it was not built for this processor family.
const TileKernel* portable_kernel(Arithmetic arithmetic);
const TileKernel* avx2_kernel(Arithmetic arithmetic);
const TileKernel* avx512_kernel(Arithmetic arithmetic);
const TileKernel* avx512_bf16_kernel(Arithmetic arithmetic);
const TileKernel* amx_kernel(Arithmetic arithmetic);

}  // namespace cac::cpu
