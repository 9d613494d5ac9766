// Products and exponentials for bfloat16 elements with float32 accumulation.
//
// The packings fit both instruction families: A operands are rows of bf16, B operands hold pairs of
// depth side by side, [depth / 2][lanes][2]. `Product` multiplies them, by vdpbf16ps or by AMX:
//
//     multiply<kAccumulate>(a, rows, depth, b, c, c_rows, between)
//     c [rows][lanes] (+)= a [rows][depth] b [depth / 2][lanes][2]
//
// Rows and depth are multiples of 32. Row i of c is kept at i % c_rows: where the caller takes the
// rows up in between, a short ring of them stays in the L1 cache. All rows are handed over by
// between(first, last), in order, an even number each time, before they are overwritten.
#pragma once

#include <immintrin.h>

#include "kernels/cpu/tile_loop.h"

namespace cac::cpu {
namespace {

constexpr int kBf16Lanes = 32;
constexpr int kBf16RowBlock = 256;
constexpr int kBf16ScoreRing = 64;

// A matrix of bf16 cut into blocks of 16 rows by 32 columns.
struct Operand {
  const uint16_t* data;
  int64_t row_stride;    // from row to row of a block
  int64_t row_blocks;    // from block to block, down
  int64_t depth_blocks;  // from block to block, across
};

// Transposes 32 rows x 32 columns of bf16 into two blocks [16][32], `to_blocks` * 16 apart.
inline void transpose_32x32(const uint16_t* from, int64_t from_stride, uint16_t* to,
                            int64_t to_blocks) {
  alignas(64) static constexpr uint16_t kLow[32] = {0,  32, 1,  33, 2,  34, 3,  35, 4,  36, 5,
                                                    37, 6,  38, 7,  39, 8,  40, 9,  41, 10, 42,
                                                    11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
  alignas(64) static constexpr uint16_t kHigh[32] = {16, 48, 17, 49, 18, 50, 19, 51, 20, 52, 21,
                                                     53, 22, 54, 23, 55, 24, 56, 25, 57, 26, 58,
                                                     27, 59, 28, 60, 29, 61, 30, 62, 31, 63};
  const __m512i low = _mm512_load_si512(kLow);
  const __m512i high = _mm512_load_si512(kHigh);
  for (int half = 0; half < 2; ++half) {
    // Two rows become 16 pairs (32 bits each) of this half's columns ...
    __m512i pairs[16];
    for (int i = 0; i < 16; ++i) {
      const __m512i even = _mm512_loadu_si512(from + (2 * i) * from_stride);
      const __m512i odd = _mm512_loadu_si512(from + (2 * i + 1) * from_stride);
      pairs[i] = _mm512_permutex2var_epi16(even, half ? high : low, odd);
    }
    // ... and a 16 x 16 transposition of those pairs does the rest.
    __m512i t[16];
    for (int i = 0; i < 16; i += 2) {
      t[i] = _mm512_unpacklo_epi32(pairs[i], pairs[i + 1]);
      t[i + 1] = _mm512_unpackhi_epi32(pairs[i], pairs[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
      pairs[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
      pairs[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
      pairs[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
      pairs[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; ++i) {
      t[i] = _mm512_shuffle_i32x4(pairs[i], pairs[i + 4], 0x88);
      t[i + 4] = _mm512_shuffle_i32x4(pairs[i], pairs[i + 4], 0xdd);
      t[i + 8] = _mm512_shuffle_i32x4(pairs[i + 8], pairs[i + 12], 0x88);
      t[i + 12] = _mm512_shuffle_i32x4(pairs[i + 8], pairs[i + 12], 0xdd);
    }
    uint16_t* out = to + half * 16 * to_blocks;
    for (int i = 0; i < 4; ++i) {
      _mm512_store_si512(out + i * 32, _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88));
      _mm512_store_si512(out + (i + 8) * 32, _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd));
      _mm512_store_si512(out + (i + 4) * 32, _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88));
      _mm512_store_si512(out + (i + 12) * 32, _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd));
    }
  }
}

// 2^x within 7.5e-5, far below half a unit of bf16 (2e-3): 2^floor(x) times a polynomial.
inline __m512 exp2_bf16(__m512 x) {
  const __m512 fraction = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  __m512 power = _mm512_set1_ps(0.07802449F);
  power = _mm512_fmadd_ps(power, fraction, _mm512_set1_ps(0.2260671F));
  power = _mm512_fmadd_ps(power, fraction, _mm512_set1_ps(0.6958335F));
  power = _mm512_fmadd_ps(power, fraction, _mm512_set1_ps(0.9999252F));
  return _mm512_scalef_ps(power, x);
}

// From scores to probabilities, two rows of one tile at a time. Without kShifted the shift is zero.
template <bool kMasked, bool kShifted>
class Exponentiator {
 public:
  Exponentiator(const LaneMask& mask, const float* shift, int rows, uint16_t* probabilities)
      : probabilities_(probabilities), row_count_(_mm512_set1_epi32(rows)) {
    const __m512i first = _mm512_set1_epi32(mask.row);
    for (int v = 0; v < kVectors; ++v) {
      shift_[v] = _mm512_loadu_ps(shift + 16 * v);
      total_[v] = _mm512_setzero_ps();
      if (!kMasked) continue;
      begin_[v] = end_[v] = _mm512_setzero_si512();
      if (!mask.any) continue;
      begin_[v] = _mm512_sub_epi32(_mm512_loadu_si512(mask.begin + 16 * v), first);
      end_[v] = _mm512_sub_epi32(_mm512_loadu_si512(mask.end + 16 * v), first);
    }
  }

  // scores [2][lanes] of the block's rows `row` and `row` + 1
  [[gnu::always_inline]] inline void operator()(const float* scores, int row) {
    alignas(64) static constexpr uint16_t kPairs[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                        21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                        11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    for (int v = 0; v < kVectors; ++v) {
      __m512 probability[2];
      for (int i = 0; i < 2; ++i) {
        const __m512 score = _mm512_load_ps(scores + i * kBf16Lanes + 16 * v);
        probability[i] = exp2_bf16(kShifted ? _mm512_sub_ps(score, shift_[v]) : score);
        if (kMasked) {
          const __m512i index = _mm512_set1_epi32(row + i);
          const __mmask16 same_class =
              _mm512_cmple_epi32_mask(begin_[v], index) & _mm512_cmplt_epi32_mask(index, end_[v]);
          const __mmask16 counted = _mm512_cmplt_epi32_mask(index, row_count_) & ~same_class;
          probability[i] = _mm512_maskz_mov_ps(counted, probability[i]);
        }
      }
      total_[v] = _mm512_add_ps(total_[v], _mm512_add_ps(probability[0], probability[1]));
      const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(probability[1], probability[0]);
      _mm512_store_si512(probabilities_ + row * kBf16Lanes + 32 * v,
                         _mm512_permutexvar_epi16(_mm512_load_si512(kPairs), both));
    }
  }

  void add_to(double* sum) const {
    for (int v = 0; v < kVectors; ++v) {
      alignas(64) float total[16];
      _mm512_store_ps(total, total_[v]);
      for (int i = 0; i < 16; ++i) sum[16 * v + i] += total[i];
    }
  }

 private:
  static constexpr int kVectors = kBf16Lanes / 16;
  uint16_t* probabilities_;  // [rows / 2][lanes][2]
  __m512i row_count_;
  __m512 shift_[kVectors], total_[kVectors];
  __m512i begin_[kVectors], end_[kVectors];
};

template <class Product>
class Bf16Isa {
 public:
  using Element = uint16_t;
  using Accumulator = float;
  static constexpr int kLanes = kBf16Lanes;
  static constexpr int kRowBlock = kBf16RowBlock;

  static size_t scratch_bytes(int64_t channels) {
    return (sizeof(float) + sizeof(uint16_t)) * kRowBlock * kLanes +
           2 * sizeof(uint16_t) * kRowBlock * channels;
  }

  Bf16Isa(void* scratch, int64_t channels, TileMode mode)
      : channels_(channels),
        mode_(mode),
        scores_(static_cast<float*>(scratch)),
        probabilities_(reinterpret_cast<uint16_t*>(scores_ + kRowBlock * kLanes)),
        transposed_(probabilities_ + kRowBlock * kLanes),
        padded_(transposed_ + kRowBlock * channels) {}

  void set_block(const uint16_t* negatives, int rows) {
    rows_ = rows;
    padded_rows_ = (rows + 31) / 32 * 32;
    negatives_ = negatives;
    if (padded_rows_ != rows) {
      std::memcpy(padded_, negatives, sizeof(uint16_t) * rows * channels_);
      std::memset(padded_ + rows * channels_, 0,
                  sizeof(uint16_t) * (padded_rows_ - rows) * channels_);
      negatives_ = padded_;
    }
    is_transposed_ = false;
  }

  void process(const TileWork<Bf16Isa>& work) {
    const bool masked = work.mask.any || rows_ != padded_rows_;
    if (mode_ == TileMode::kBoundedShift) {
      masked ? score_and_exponentiate<true>(work) : score_and_exponentiate<false>(work);
    } else {
      multiply_scores(work, kRowBlock, [](int, int) {});
      raise_lane_maximum<float, kLanes>(scores_, rows_, channels_, work.mask, work.shift, work.sum,
                                        work.weighted);
      if (mode_ == TileMode::kMaxOnly) return;
      masked ? exponentiate<true>(work) : exponentiate<false>(work);
    }
    if (work.weighted != nullptr) accumulate(work);
  }

 private:
  // scores [rows][lanes] = N [rows][C] A^T [C][lanes]
  template <class Between>
  void multiply_scores(const TileWork<Bf16Isa>& work, int ring, Between&& between) {
    const Operand rows{negatives_, channels_, 16 * channels_, 32};
    product_.template multiply<false>(rows, padded_rows_, channels_, work.anchors, scores_, ring,
                                      between);
  }

  template <bool kMasked>
  void exponentiate(const TileWork<Bf16Isa>& work) {
    Exponentiator<kMasked, true> exponentiate(work.mask, work.shift, rows_, probabilities_);
    for (int row = 0; row < padded_rows_; row += 2) exponentiate(scores_ + row * kLanes, row);
    exponentiate.add_to(work.sum);
  }

  // The matrix unit and the vector units work side by side: while the product fills some rows of
  // the scores, the exponentials of the rows before them are taken.
  template <bool kMasked>
  void score_and_exponentiate(const TileWork<Bf16Isa>& work) {
    Exponentiator<kMasked, false> exponentiate(work.mask, work.shift, rows_, probabilities_);
    const auto exponentiate_rows = [&](int first, int last) __attribute__((always_inline)) {
      for (int row = first; row < last; row += 2) {
        exponentiate(scores_ + row % kBf16ScoreRing * kLanes, row);
      }
    };
    multiply_scores(work, kBf16ScoreRing, exponentiate_rows);
    exponentiate.add_to(work.sum);
  }

  // weighted [C][lanes] += N^T [C][rows] P [rows][lanes]
  void accumulate(const TileWork<Bf16Isa>& work) {
    if (!is_transposed_) {  // once a block, for all tiles of the group
      for (int row = 0; row < padded_rows_; row += 32) {
        for (int64_t c = 0; c < channels_; c += 32) {
          transpose_32x32(negatives_ + row * channels_ + c, channels_,
                          transposed_ + c * kRowBlock + 16 * row, kRowBlock);
        }
      }
      is_transposed_ = true;
    }
    const Operand columns{transposed_, 32, 16 * kRowBlock, 16 * 32};
    product_.template multiply<true>(columns, channels_, padded_rows_, probabilities_,
                                     work.weighted, channels_, [](int, int) {});
  }

  int64_t channels_;
  TileMode mode_;
  float* scores_;            // [kRowBlock][kLanes], or a ring of kBf16ScoreRing rows
  uint16_t* probabilities_;  // [kRowBlock / 2][kLanes][2]
  uint16_t* transposed_;     // [C / 16][kRowBlock / 32][16][32]
  uint16_t* padded_;         // [kRowBlock][C], the last rows when they do not fill 32
  const uint16_t* negatives_ = nullptr;
  int rows_ = 0;
  int padded_rows_ = 0;
  bool is_transposed_ = false;
  Product product_;
};

template <class Product>
const TileKernel* find_bf16_kernel(const char* instruction_set, DType element) {
  using Isa = Bf16Isa<Product>;
  static const TileKernel kernel = {
      instruction_set, DType::kBFloat16,   DType::kFloat32,     Isa::kLanes, 2, 32,
      Isa::kRowBlock,  Isa::scratch_bytes, &run_tile_group<Isa>};
  return element == DType::kBFloat16 ? &kernel : nullptr;
}

}  // namespace
}  // namespace cac::cpu
