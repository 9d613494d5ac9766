// The innermost piece of the CPU path: a few tiles of anchors against a share of the negatives.
//
// The slots of a tile lie side by side, so that one vector register holds the same channel (or the
// probability of the same negative) of neighboring slots. Both matrix products then read the
// negatives as they lie in memory, and each row loaded for scores = N A^T also serves
// weighted^T += N^T P.
//
// The kernel is compiled once per instruction set, from the same headers, with that set's compiler
// flags (tile_<set>.cpp); cpu_capability.cpp picks one at run time. Headers included by those files
// must not call inline functions of the standard library: the linker would keep one copy of each,
// possibly the one with instructions this processor lacks.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/problem.h"

namespace cac::cpu {

// How the factors of the two products are multiplied; sums are float32, for kFloat64 float64.
enum class Arithmetic {
  kFloat64,
  kFloat32,        // or sums of three bfloat16, which are as accurate for rows of ordinary length
  kVectorFloat32,  // float32 itself, for rows so short that parts of their elements are subnormal
  kSplitBFloat16,  // float32 as a sum of two bfloat16, products within 2^-15 (see bf16_isa.h)
  kBFloat16,
};

// How the intervals of a tile's slots lie. A unit inside of them all, or outside, needs no mask and
// may need no product.
struct TileSpan {
  int32_t common_begin, common_end;      // inside the intervals of all slots
  int32_t hull_begin, hull_end;          // nothing outside is in the interval of any slot
  int32_t excluded_begin, excluded_end;  // nothing outside is excluded for any slot
};

enum class TileMode {
  kBoundedShift,  // the shift is zero: no logit is large enough to need one
  kOnlineMax,     // the shift is the running maximum
  kMaxOnly,       // computes the running maximum alone and masks nothing
  // With x = score - shift in place of 2^x:
  kLogistic,  // 1 / (1 + 2^x); the shift is given, and `margin` sums log(1 + 2^-x)
  // Every negative has a shift and a weight:
  kColumnExp,       // weight 2^x, x <= 0 but for rounding
  kColumnLogistic,  // weight / (1 + 2^x)
};

// Tiles that use each loaded unit one after the other.
struct TileGroup {
  int num_tiles;
  const void* anchors;             // [tiles][channels x slots], packed as TileKernel says
  const TileSpan* spans;           // [tiles]
  const int32_t* interval_begin;   // [tiles][slots]
  const int32_t* interval_end;     // [tiles][slots]
  bool interval_counts;            // what is inside counts, not what is outside
  const int32_t* excluded;         // [tiles][slots] an id, or null: no negative is excluded
  const int32_t* column_ids;       // [N] ids; null: the negatives' numbers
  const void* negatives;           // [N, negative_channels]
  int64_t negative_channels;       // as the negatives are padded
  int64_t channels;                // the next multiple of channel_multiple
  int32_t share_begin, share_end;  // negatives [share_begin, share_end)
  TileMode mode;
  bool with_gradient;
  // The partials, in the kernel's accumulator type. Logits are in units of log 2, because the
  // anchors carry log2(e) / tau.
  void* shift;     // [tiles][slots], in and out
  double* sum;     // [tiles][slots] sum of exp2(logit - shift), out
  void* weighted;  // [tiles][channels][slots] sum of exp2(logit - shift) n, out
  double* margin;  // [tiles][slots] kLogistic only, out
  // [N, and zeros for one more unit] in the accumulator's type; modes of columns only
  const void* column_shift;
  const void* column_weight;
  void* scratch;  // scratch_bytes(channels), 64-byte aligned
};

struct TileKernel {
  const char* instruction_set;
  DType element;         // type of negatives
  DType anchor;          // type of packed anchors
  DType accumulator;     // type of shift and weighted
  int tile_slots;        // slots of a tile
  int anchor_parts;      // more than 1: anchors are followed by the remainders of rounding them
  int channel_pairs;     // 1: anchors packed [C][slots]; 2: [C / 2][slots][2]
  int channel_multiple;  // of anchors and, unless they are copied in units, of negatives
  int unit_negatives;    // shares begin at multiples of this
  size_t (*scratch_bytes)(int64_t channels);
  void (*run)(const TileGroup& group);
};

// One per source file tile_<set>.cpp; null if the set has no kernel for this arithmetic.
const TileKernel* portable_kernel(Arithmetic arithmetic);
const TileKernel* avx2_kernel(Arithmetic arithmetic);
const TileKernel* avx512_kernel(Arithmetic arithmetic);
const TileKernel* avx512_bf16_kernel(Arithmetic arithmetic);
const TileKernel* amx_kernel(Arithmetic arithmetic);

}  // namespace cac::cpu
