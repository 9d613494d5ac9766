// Products of bfloat16 with float32 accumulation, and exponentials.
//
// They serve two element types. bfloat16 is multiplied directly. float32 is split into `kParts`
// parts: x0 = bf16(x), x1 = bf16(x - x0), x2 = bf16(x - x0 - x1), each at most 2^-8 of the one
// before. A product becomes the products xi yj with i + j < kParts:
//
//     kParts  products  remainder of x     omitted from x y
//     2       3         2^-17 |x|          x1 y1: 2^-16 |x y|
//     3       6         nothing (24 bits)  x1 y2 + x2 y1: 2^-24 |x y|, half a unit of float32
//
// The packings fit both instruction families: A operands are rows of bf16, B operands hold pairs
// along the depth side by side, [depth / 2][lanes][2]; the parts of B follow one another. `Product`
// multiplies them, by vdpbf16ps or by AMX:
//
//     multiply<kParts, kAccumulate>(a, rows, depth, b, c, c_rows, between)
//     c [rows][lanes] (+)= a [rows][depth] b [depth / 2][lanes][2]
//
// Rows and depth are multiples of 32. Row i of c is kept at i % c_rows: a caller that uses the rows
// during the product needs only a short ring of them, which stays in the L1 cache. between(first,
// last) hands all rows over before they are overwritten, in order, an even number each time.
#pragma once

#include <immintrin.h>

#include <type_traits>

#include "kernels/cpu/tile_loop.h"

namespace cac::cpu {
namespace {

constexpr int kBf16Lanes = 32;
constexpr int kBf16UnitNegatives = 256;
constexpr int kBf16ScoreRing = 64;

// A matrix of bf16 cut into blocks of 16 rows by 32 columns. The numbers are distances in elements.
struct Operand {
  const uint16_t* data;
  int64_t row_stride;    // from row to row of a block
  int64_t row_blocks;    // from block to block, down
  int64_t depth_blocks;  // from block to block, across
  int64_t parts;         // from each part to the next, if split
};

// Transposes the first 32 rows x 32 columns of `from` into two blocks [16][32], `to_blocks` apart.
inline void transpose_32x32(const Operand& from, uint16_t* to, int64_t to_blocks) {
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
      const uint16_t* row = from.data + i / 8 * from.row_blocks + 2 * (i % 8) * from.row_stride;
      const __m512i even = _mm512_loadu_si512(row);
      const __m512i odd = _mm512_loadu_si512(row + from.row_stride);
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
    uint16_t* out = to + half * to_blocks;
    for (int i = 0; i < 4; ++i) {
      _mm512_store_si512(out + i * 32, _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88));
      _mm512_store_si512(out + (i + 8) * 32, _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd));
      _mm512_store_si512(out + (i + 4) * 32, _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88));
      _mm512_store_si512(out + (i + 12) * 32, _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd));
    }
  }
}

// 2^x = 2^floor(x) times a minimax polynomial of the fraction. The relative error is 7.5e-5 for
// bf16, whose half unit in the last place is 3.9e-3, and 7.5e-8 for split numbers, about half a
// unit of float32.
template <int kParts>
inline __m512 exp2_of(__m512 x) {
  constexpr int kDegree = kParts > 1 ? 5 : 3;
  constexpr float kBf16[] = {0.9999252F, 0.6958335F, 0.2260671F, 0.07802449F};
  constexpr float kFloat[] = {0.999999925F,  0.693153073F,   0.240153617F,
                              0.0558263181F, 0.00898934009F, 0.00187757668F};
  const float* coefficients = kParts > 1 ? kFloat : kBf16;
  const __m512 fraction = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  __m512 power = _mm512_set1_ps(coefficients[kDegree]);
  for (int i = kDegree - 1; i >= 0; --i) {
    power = _mm512_fmadd_ps(power, fraction, _mm512_set1_ps(coefficients[i]));
  }
  return _mm512_scalef_ps(power, x);
}

// [first, second] to [first[0], second[0], first[1], second[1], ...]
inline __m512i interleave(__m512i numbers) {
  alignas(64) static constexpr uint16_t kPairs[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                      21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                      11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  return _mm512_permutexvar_epi16(_mm512_load_si512(kPairs), numbers);
}

// [first, second] as bf16, rounded to nearest.
inline __m512i round_to_bf16(__m512 first, __m512 second) {
  return (__m512i)_mm512_cvtne2ps_pbh(second, first);
}

// Calls store(part, rounded, pairs) for each part of [first, second]; `pairs` are interleaved.
template <int kParts, class Store>
[[gnu::always_inline]] inline void split(__m512 first, __m512 second, Store&& store) {
  const __m512i upper_half = _mm512_set1_epi32(static_cast<int>(0xffff0000));
  for (int part = 0; part < kParts; ++part) {
    const __m512i rounded = round_to_bf16(first, second);
    const __m512i pairs = interleave(rounded);
    store(part, rounded, pairs);
    // The remainders of rounding.
    first = _mm512_sub_ps(first, _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)));
    second = _mm512_sub_ps(second, _mm512_castsi512_ps(_mm512_and_si512(pairs, upper_half)));
  }
}

// Splits a row of float32 into its parts, `parts` apart, in blocks of 32 columns, `blocks` apart;
// zero from `columns` to `padded_columns`.
template <int kParts>
inline void split_row(const float* row, int64_t columns, int64_t padded_columns, int64_t blocks,
                      int64_t parts, uint16_t* to) {
  for (int64_t c = 0; c < padded_columns; c += 32, to += blocks) {
    __m512 numbers[2];
    for (int v = 0; v < 2; ++v) {
      const int64_t left = columns - c - 16 * v;
      const __mmask16 present = left >= 16 ? 0xffff : left > 0 ? (1 << left) - 1 : 0;
      numbers[v] = _mm512_maskz_loadu_ps(present, row + c + 16 * v);
    }
    split<kParts>(numbers[0], numbers[1],
                  [&](int part, __m512i rounded, __m512i) __attribute__((always_inline)) {
                    _mm512_store_si512(to + part * parts, rounded);
                  });
  }
}

// Turns scores into probabilities, for two negatives and one tile at a time.
template <int kParts, bool kMasked, Power kPower>
class Exponentiator {
 public:
  // probabilities [kParts][padded_count / 2][lanes][2]
  template <class Work>
  Exponentiator(const Work& work, int count, int padded_count, uint16_t* probabilities)
      : probabilities_(probabilities),
        part_size_(padded_count * kBf16Lanes),
        unit_size_(_mm512_set1_epi32(count)),
        column_shift_(work.column_shift),
        column_weight_(work.column_weight) {
    const LaneMask& mask = work.mask;
    const __m512i first = _mm512_set1_epi32(mask.first_negative);
    for (int v = 0; v < kVectors; ++v) {
      shift_[v] = _mm512_loadu_ps(work.shift + 16 * v);
      total_[v] = margin_[v] = _mm512_setzero_ps();
      if (!kMasked) continue;
      begin_[v] = end_[v] = excluded_[v] = _mm512_setzero_si512();
      if (!mask.any) continue;
      begin_[v] = _mm512_sub_epi32(_mm512_loadu_si512(mask.begin + 16 * v), first);
      end_[v] = _mm512_sub_epi32(_mm512_loadu_si512(mask.end + 16 * v), first);
      outside_ = mask.interval_counts ? 0xffff : 0;
      ids_ = mask.ids;
      excludes_ = mask.excluded != nullptr;
      if (!excludes_) continue;
      excluded_[v] = _mm512_loadu_si512(mask.excluded + 16 * v);
      if (ids_ == nullptr) excluded_[v] = _mm512_sub_epi32(excluded_[v], first);
    }
  }

  // scores [2][lanes] of the unit's negatives `negative` and `negative` + 1
  [[gnu::always_inline]] inline void operator()(const float* scores, int negative) {
    for (int v = 0; v < kVectors; ++v) {
      __m512 probability[2];
      for (int i = 0; i < 2; ++i) {
        const __m512 score = _mm512_load_ps(scores + i * kBf16Lanes + 16 * v);
        const __mmask16 counted = kMasked ? counted_lanes(v, negative + i) : 0xffff;
        probability[i] = probability_of(v, score, negative + i, counted);
        if (kMasked) probability[i] = _mm512_maskz_mov_ps(counted, probability[i]);
      }
      total_[v] = _mm512_add_ps(total_[v], _mm512_add_ps(probability[0], probability[1]));
      const int64_t at = negative * kBf16Lanes + 32 * v;
      split<kParts>(probability[0], probability[1],
                    [&](int part, __m512i, __m512i pairs) __attribute__((always_inline)) {
                      _mm512_store_si512(probabilities_ + part * part_size_ + at, pairs);
                    });
    }
  }

  void add_to(double* sum, double* margin) const {
    for (int v = 0; v < kVectors; ++v) {
      alignas(64) float total[16];
      _mm512_store_ps(total, total_[v]);
      for (int i = 0; i < 16; ++i) sum[16 * v + i] += total[i];
      if constexpr (kPower == Power::kLogistic) {
        _mm512_store_ps(total, margin_[v]);
        for (int i = 0; i < 16; ++i) margin[16 * v + i] += total[i];
      }
    }
  }

 private:
  static constexpr int kVectors = kBf16Lanes / 16;

  // The lanes for which this negative of the unit counts.
  [[gnu::always_inline]] inline __mmask16 counted_lanes(int v, int negative) const {
    const __m512i index = _mm512_set1_epi32(negative);
    __mmask16 masked =
        _mm512_cmple_epi32_mask(begin_[v], index) & _mm512_cmplt_epi32_mask(index, end_[v]);
    masked ^= outside_;
    if (excludes_) {
      const __m512i id = ids_ == nullptr ? index : _mm512_set1_epi32(ids_[negative]);
      masked |= _mm512_cmpeq_epi32_mask(id, excluded_[v]);
    }
    return _mm512_cmplt_epi32_mask(index, unit_size_) & ~masked;
  }

  [[gnu::always_inline]] inline __m512 probability_of(int v, __m512 score, int negative,
                                                      __mmask16 counted) {
    if constexpr (kPower == Power::kUnshifted) return exp2_of<kParts>(score);
    const __m512 shift = is_by_column(kPower) ? _mm512_set1_ps(column_shift_[negative]) : shift_[v];
    const __m512 x = _mm512_sub_ps(score, shift);
    if constexpr (kPower == Power::kShifted) return exp2_of<kParts>(x);
    const __m512 zero = _mm512_setzero_ps();
    __m512 result;
    if constexpr (is_logistic(kPower)) {
      const __m512 one = _mm512_set1_ps(1.0F);
      const __m512 power = exp2_of<kParts>(_mm512_min_ps(x, _mm512_sub_ps(zero, x)));
      const __mmask16 above = _mm512_cmp_ps_mask(x, zero, _CMP_GT_OQ);
      result = _mm512_div_ps(_mm512_mask_mov_ps(one, above, power), _mm512_add_ps(one, power));
      if constexpr (kPower == Power::kLogistic) {
        const __m512 linear = _mm512_mul_ps(_mm512_min_ps(x, zero), _mm512_set1_ps(-float(kLn2)));
        const __m512 part = _mm512_add_ps(linear, (__m512)log1p<float>((Vector<float>)power));
        margin_[v] = _mm512_mask_add_ps(margin_[v], counted, margin_[v], part);
      }
    } else {
      result = exp2_of<kParts>(_mm512_min_ps(x, zero));
    }
    if (!is_by_column(kPower)) return result;
    return _mm512_mul_ps(result, _mm512_set1_ps(column_weight_[negative]));
  }

  uint16_t* probabilities_;
  int64_t part_size_;
  __m512i unit_size_;
  const float* column_shift_;
  const float* column_weight_;
  __m512 shift_[kVectors], total_[kVectors], margin_[kVectors];
  __m512i begin_[kVectors], end_[kVectors], excluded_[kVectors];
  __mmask16 outside_ = 0;
  const int32_t* ids_ = nullptr;
  bool excludes_ = false;
};

template <class Product, int kParts>
class Bf16Isa {
 public:
  using Element = std::conditional_t<kParts == 1, uint16_t, float>;
  using Anchor = uint16_t;
  using Accumulator = float;
  static constexpr int kLanes = kBf16Lanes;
  static constexpr int kAnchorParts = kParts;
  static constexpr int kUnitNegatives = kBf16UnitNegatives;

  static size_t scratch_bytes(int64_t channels) {
    return sizeof(float) * kUnitNegatives * kLanes +
           kParts * sizeof(uint16_t) * kUnitNegatives * (kLanes + 2 * channels);
  }

  Bf16Isa(void* scratch, int64_t channels, TileMode mode)
      : channels_(channels),
        mode_(mode),
        scores_(static_cast<float*>(scratch)),
        probabilities_(reinterpret_cast<uint16_t*>(scores_ + kUnitNegatives * kLanes)),
        transposed_(probabilities_ + kParts * kUnitNegatives * kLanes),
        copied_(transposed_ + kParts * kUnitNegatives * channels) {}

  void set_unit(const Element* negatives, int64_t row_stride, int count) {
    count_ = count;
    padded_count_ = (count + 31) / 32 * 32;
    is_transposed_ = false;
    if constexpr (kParts > 1) {
      // Blocks are contiguous, because the matrix unit loads these fast.
      by_row_ = {copied_, 32, 16 * channels_, 16 * 32, unit_elements()};
      for (int row = 0; row < padded_count_; ++row) {
        uint16_t* to = copied_ + row / 16 * by_row_.row_blocks + row % 16 * by_row_.row_stride;
        split_row<kParts>(negatives + row * row_stride, row < count ? row_stride : 0, channels_,
                          by_row_.depth_blocks, by_row_.parts, to);
      }
    } else {
      by_row_ = {negatives, channels_, 16 * channels_, 32, 0};
      if (padded_count_ == count) return;
      by_row_.data = copied_;
      std::memcpy(copied_, negatives, sizeof(uint16_t) * count * channels_);
      std::memset(copied_ + count * channels_, 0,
                  sizeof(uint16_t) * (padded_count_ - count) * channels_);
    }
  }

  void process(const TileWork<Bf16Isa>& work) {
    const bool masked = work.mask.any || count_ != padded_count_;
    switch (mode_) {
      case TileMode::kBoundedShift:
        score_and_exponentiate<Power::kUnshifted>(work, masked);
        break;
      case TileMode::kLogistic:
        score_and_exponentiate<Power::kLogistic>(work, masked);
        break;
      case TileMode::kColumnExp:
        score_and_exponentiate<Power::kColumnExp>(work, masked);
        break;
      case TileMode::kColumnLogistic:
        score_and_exponentiate<Power::kColumnLogistic>(work, masked);
        break;
      default:
        multiply_scores(work, kUnitNegatives, [](int, int) {});
        raise_lane_maximum<float, kLanes>(scores_, count_, channels_, work.mask, work.shift,
                                          work.sum, work.weighted);
        if (mode_ == TileMode::kMaxOnly) return;
        masked ? exponentiate<true>(work) : exponentiate<false>(work);
    }
    if (work.weighted != nullptr) accumulate(work);
  }

 private:
  int64_t unit_elements() const { return kUnitNegatives * channels_; }

  // scores [padded_count][lanes] = N [padded_count][C] A^T [C][lanes]
  template <class Between>
  void multiply_scores(const TileWork<Bf16Isa>& work, int ring, Between&& between) {
    const Operand rows = by_row_;  // a copy, which stores through pointers cannot change
    product_.template multiply<kParts, false>(rows, padded_count_, channels_, work.anchors, scores_,
                                              ring, between);
  }

  template <bool kMasked>
  void exponentiate(const TileWork<Bf16Isa>& work) {
    Exponentiator<kParts, kMasked, Power::kShifted> exponentiate(work, count_, padded_count_,
                                                                 probabilities_);
    for (int i = 0; i < padded_count_; i += 2) exponentiate(scores_ + i * kLanes, i);
    exponentiate.add_to(work.sum, work.margin);
  }

  // The matrix unit and the vector units work side by side: while the product computes some scores,
  // the exponentials of the scores before them are taken.
  template <Power kPower>
  void score_and_exponentiate(const TileWork<Bf16Isa>& work, bool masked) {
    masked ? score_and_exponentiate<kPower, true>(work)
           : score_and_exponentiate<kPower, false>(work);
  }

  template <Power kPower, bool kMasked>
  void score_and_exponentiate(const TileWork<Bf16Isa>& work) {
    Exponentiator<kParts, kMasked, kPower> exponentiate(work, count_, padded_count_,
                                                        probabilities_);
    const auto exponentiate_some = [&](int first, int last) __attribute__((always_inline)) {
      for (int i = first; i < last; i += 2) {
        exponentiate(scores_ + i % kBf16ScoreRing * kLanes, i);
      }
    };
    multiply_scores(work, kBf16ScoreRing, exponentiate_some);
    exponentiate.add_to(work.sum, work.margin);
  }

  // weighted [C][lanes] += N^T [C][padded_count] P [padded_count][lanes]
  void accumulate(const TileWork<Bf16Isa>& work) {
    const Operand by_channel{transposed_, 32, 16 * kUnitNegatives, 16 * 32, unit_elements()};
    if (!is_transposed_) transpose(by_channel);  // once a unit, for all tiles of the group
    product_.template multiply<kParts, true>(by_channel, channels_, padded_count_, probabilities_,
                                             work.weighted, channels_, [](int, int) {});
  }

  void transpose(const Operand& by_channel) {
    for (int part = 0; part < kParts; ++part) {
      for (int row = 0; row < padded_count_; row += 32) {
        for (int64_t c = 0; c < channels_; c += 32) {
          Operand from = by_row_;
          from.data += part * from.parts + row / 16 * from.row_blocks + c / 32 * from.depth_blocks;
          transpose_32x32(from,
                          transposed_ + part * by_channel.parts + c / 16 * by_channel.row_blocks +
                              row / 32 * by_channel.depth_blocks,
                          by_channel.row_blocks);
        }
      }
    }
    is_transposed_ = true;
  }

  int64_t channels_;
  TileMode mode_;
  float* scores_;            // [kUnitNegatives][kLanes], or a ring [kBf16ScoreRing][kLanes]
  uint16_t* probabilities_;  // [kParts][padded_count_ / 2][kLanes][2]
  uint16_t* transposed_;     // [kParts][C / 16][kUnitNegatives / 32][16][32]
  uint16_t* copied_;         // [kParts][kUnitNegatives][C]: a split unit, or one padded to 32 rows
  Operand by_row_{};         // the unit's negatives, in the problem or in copied_
  int count_ = 0;
  int padded_count_ = 0;
  bool is_transposed_ = false;
  Product product_;
};

template <class Product, int kParts>
const TileKernel* bf16_kernel(const char* instruction_set) {
  using Isa = Bf16Isa<Product, kParts>;
  static const TileKernel kernel = {
      .instruction_set = instruction_set,
      .element = kParts == 1 ? DType::kBFloat16 : DType::kFloat32,
      .anchor = DType::kBFloat16,
      .accumulator = DType::kFloat32,
      .tile_slots = Isa::kLanes,
      .anchor_parts = Isa::kAnchorParts,
      .channel_pairs = 2,
      .channel_multiple = 32,
      .unit_negatives = Isa::kUnitNegatives,
      .scratch_bytes = Isa::scratch_bytes,
      .run = &run_tile_group<Isa>,
  };
  return &kernel;
}

}  // namespace
}  // namespace cac::cpu
