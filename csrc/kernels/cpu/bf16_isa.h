// Products and exponentials for bfloat16 elements with float32 accumulation.
//
// The packings fit both instruction families: A operands are rows of bf16, B operands hold pairs of
// depth side by side, [depth / 2][lanes][2]. `Product` multiplies them: by vdpbf16ps or by AMX.
#pragma once

#include <immintrin.h>

#include "kernels/cpu/simd.h"
#include "kernels/cpu/tile_loop.h"

namespace cac::cpu {
namespace {

constexpr int kBf16Lanes = 32;
constexpr int kBf16RowBlock = 256;

// Transposes 32 rows x 32 columns of bf16.
inline void transpose_32x32(const uint16_t* from, int64_t from_stride, uint16_t* to,
                            int64_t to_stride) {
  alignas(64) static constexpr uint16_t kLow[32] = {
      0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
      8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
  alignas(64) static constexpr uint16_t kHigh[32] = {
      16, 48, 17, 49, 18, 50, 19, 51, 20, 52, 21, 53, 22, 54, 23, 55,
      24, 56, 25, 57, 26, 58, 27, 59, 28, 60, 29, 61, 30, 62, 31, 63};
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
    uint16_t* out = to + half * 16 * to_stride;
    for (int i = 0; i < 4; ++i) {
      _mm512_store_si512(out + i * to_stride, _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88));
      _mm512_store_si512(out + (i + 8) * to_stride, _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd));
      _mm512_store_si512(out + (i + 4) * to_stride, _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88));
      _mm512_store_si512(out + (i + 12) * to_stride,
                         _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd));
    }
  }
}

template <class Product>
class Bf16Isa {
 public:
  using Element = uint16_t;
  using Accumulator = float;
  static constexpr int kLanes = kBf16Lanes;
  static constexpr int kRowBlock = kBf16RowBlock;

  static size_t scratch_bytes(int64_t channels) {
    return sizeof(float) * kRowBlock * kLanes + sizeof(uint16_t) * kRowBlock * kLanes +
           2 * sizeof(uint16_t) * kRowBlock * channels;
  }

  Bf16Isa(void* scratch, int64_t channels)
      : channels_(channels),
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

  // scores [rows][lanes] = N [rows][C] A^T [C][lanes]
  void scores(const uint16_t* anchors) {
    product_.template multiply<false>(negatives_, channels_, padded_rows_, channels_, anchors,
                                      scores_);
  }

  void raise_maximum(const LaneMask& mask, float* shift, double* sum, float* weighted) {
    raise_lane_maximum<float, kLanes>(scores_, rows_, channels_, mask, shift, sum, weighted);
  }

  void exponentiate(const LaneMask& mask, const float* shift, double* sum) {
    mask.any || rows_ != padded_rows_ ? exponentiate_rows<true>(mask, shift, sum)
                                      : exponentiate_rows<false>(mask, shift, sum);
  }

  // weighted [C][lanes] += N^T [C][rows] P [rows][lanes]
  void accumulate(float* weighted) {
    if (!is_transposed_) {  // once a block, for all tiles of the group
      for (int row = 0; row < padded_rows_; row += 32) {
        for (int64_t c = 0; c < channels_; c += 32) {
          transpose_32x32(negatives_ + row * channels_ + c, channels_,
                          transposed_ + c * kRowBlock + row, kRowBlock);
        }
      }
      is_transposed_ = true;
    }
    product_.template multiply<true>(transposed_, kRowBlock, channels_, padded_rows_,
                                     probabilities_, weighted);
  }

 private:
  // 2^x for x <= 0, within 2.6e-6: far below the rounding of the result to bf16.
  static inline __m512 exp2_bf16(__m512 x) {
    x = _mm512_max_ps(x, _mm512_set1_ps(Simd<float>::kLowest));
    const __m512 rounded = _mm512_add_ps(x, _mm512_set1_ps(Simd<float>::kRound));
    const __m512 fraction =
        _mm512_sub_ps(x, _mm512_sub_ps(rounded, _mm512_set1_ps(Simd<float>::kRound)));
    __m512 power = _mm512_set1_ps(0.009570101863299818346f);
    power = _mm512_fmadd_ps(power, fraction, _mm512_set1_ps(0.05591786034055625531f));
    power = _mm512_fmadd_ps(power, fraction, _mm512_set1_ps(0.2402474483148472695f));
    power = _mm512_fmadd_ps(power, fraction, _mm512_set1_ps(0.6931218147430910687f));
    power = _mm512_fmadd_ps(power, fraction, _mm512_set1_ps(0.9999992614416003319f));
    return _mm512_castsi512_ps(
        _mm512_add_epi32(_mm512_castps_si512(power),
                         _mm512_slli_epi32(_mm512_castps_si512(rounded), 23)));
  }

  template <bool kMasked>
  void exponentiate_rows(const LaneMask& mask, const float* shift, double* sum) {
    alignas(64) static constexpr uint16_t kPairs[32] = {
        0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
        8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    const __m512i pairs = _mm512_load_si512(kPairs);
    const __m512i row_count = _mm512_set1_epi32(rows_);
    for (int lane = 0; lane < kLanes; lane += 16) {
      const __m512 lane_shift = _mm512_loadu_ps(shift + lane);
      __m512i begin = _mm512_setzero_si512(), end = begin;
      if (kMasked && mask.any) {
        const __m512i first = _mm512_set1_epi32(mask.row);
        begin = _mm512_sub_epi32(_mm512_loadu_si512(mask.begin + lane), first);
        end = _mm512_sub_epi32(_mm512_loadu_si512(mask.end + lane), first);
      }
      __m512 totals[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
      for (int row = 0; row < padded_rows_; row += 2) {
        __m512 probability[2];
        for (int i = 0; i < 2; ++i) {
          const __m512 score = _mm512_load_ps(scores_ + (row + i) * kLanes + lane);
          probability[i] = exp2_bf16(_mm512_sub_ps(score, lane_shift));
          if (kMasked) {
            const __m512i index = _mm512_set1_epi32(row + i);
            const __mmask16 same_class = _mm512_cmple_epi32_mask(begin, index) &
                                         _mm512_cmplt_epi32_mask(index, end);
            const __mmask16 counted = _mm512_cmplt_epi32_mask(index, row_count) & ~same_class;
            probability[i] = _mm512_maskz_mov_ps(counted, probability[i]);
          }
          totals[i] = _mm512_add_ps(totals[i], probability[i]);
        }
        const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(probability[1], probability[0]);
        _mm512_store_si512(probabilities_ + row * kLanes + 2 * lane,
                           _mm512_permutexvar_epi16(pairs, both));
      }
      alignas(64) float total[16];
      _mm512_store_ps(total, _mm512_add_ps(totals[0], totals[1]));
      for (int i = 0; i < 16; ++i) sum[lane + i] += total[i];
    }
  }

  int64_t channels_;
  float* scores_;            // [kRowBlock][kLanes]
  uint16_t* probabilities_;  // [kRowBlock / 2][kLanes][2]
  uint16_t* transposed_;     // [C][kRowBlock]
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
  static const TileKernel kernel = {instruction_set,
                                    DType::kBFloat16,
                                    DType::kFloat32,
                                    Isa::kLanes,
                                    2,
                                    32,
                                    Isa::kRowBlock,
                                    Isa::scratch_bytes,
                                    &run_tile_group<Isa>};
  return element == DType::kBFloat16 ? &kernel : nullptr;
}

}  // namespace
}  // namespace cac::cpu
