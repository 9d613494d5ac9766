// Products and exponentials for float and double, on the vectors that the file is compiled for.
#pragma once

#include "kernels/cpu/tile_loop.h"

namespace cac::cpu {
namespace {

// Register block of the products: kBlockRows rows by kBlockVectors vectors of lanes. The
// accumulators, one row of B and a broadcast element fill the registers.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kBlockRows = 8;  // 24 + 3 + 1 of 32 registers
#else
constexpr int kBlockRows = 4;  // 12 + 3 + 1 of 16 registers
#endif
constexpr int kBlockVectors = 3;

// One register block of C [rows][lanes] (+)= A [rows][depth] B [depth][lanes].
template <typename T, int kRows, bool kAccumulate>
inline void multiply_block(const T* a, int64_t row_stride, int64_t depth_stride, int64_t depth,
                           const T* b, T* c) {
  constexpr int kWidth = VectorOf<T>::kWidth;
  constexpr int kLanes = kBlockVectors * kWidth;
  Vector<T> block[kRows][kBlockVectors] = {};
  for (int64_t k = 0; k < depth; ++k) {
    Vector<T> lanes[kBlockVectors];
    for (int v = 0; v < kBlockVectors; ++v) lanes[v] = load(b + k * kLanes + v * kWidth);
    for (int r = 0; r < kRows; ++r) {
      const Vector<T> element = a[r * row_stride + k * depth_stride] - Vector<T>{};
      for (int v = 0; v < kBlockVectors; ++v) block[r][v] += element * lanes[v];
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kBlockVectors; ++v) {
      T* out = c + r * kLanes + v * kWidth;
      store(out, kAccumulate ? load(out) + block[r][v] : block[r][v]);
    }
  }
}

template <typename T, bool kAccumulate, int kRows = kBlockRows>
inline void multiply(const T* a, int64_t row_stride, int64_t depth_stride, int64_t rows,
                     int64_t depth, const T* b, T* c) {
  constexpr int kLanes = kBlockVectors * VectorOf<T>::kWidth;
  int64_t row = 0;
  for (; row + kRows <= rows; row += kRows) {
    multiply_block<T, kRows, kAccumulate>(a + row * row_stride, row_stride, depth_stride, depth, b,
                                          c + row * kLanes);
  }
  if constexpr (kRows > 1) {
    if (row < rows) {
      multiply<T, kAccumulate, kRows / 2>(a + row * row_stride, row_stride, depth_stride,
                                          rows - row, depth, b, c + row * kLanes);
    }
  }
}

template <typename T>
class VectorIsa {
 public:
  using Element = T;
  using Anchor = T;
  using Accumulator = T;
  static constexpr int kWidth = VectorOf<T>::kWidth;
  static constexpr int kLanes = kBlockVectors * kWidth;
  static constexpr int kAnchorParts = 1;
  static constexpr int kUnitNegatives = 96;

  static size_t scratch_bytes(int64_t) { return sizeof(T) * kUnitNegatives * kLanes; }

  VectorIsa(void* scratch, int64_t channels, TileMode mode)
      : channels_(channels), mode_(mode), scores_(static_cast<T*>(scratch)) {}

  void set_unit(const T* negatives, int64_t, int count) {  // rows are `channels` apart
    negatives_ = negatives;
    count_ = count;
  }

  void process(const TileWork<VectorIsa>& work) {
    // scores [count][lanes] = N [count][C] A^T [C][lanes]
    multiply<T, false>(negatives_, channels_, 1, count_, channels_, work.anchors, scores_);
    if (mode_ == TileMode::kOnlineMax || mode_ == TileMode::kMaxOnly) {
      raise_lane_maximum<T, kLanes>(scores_, count_, channels_, work.mask, work.shift, work.sum,
                                    work.weighted);
      if (mode_ == TileMode::kMaxOnly) return;
    }
    replace_scores(work);
    if (work.weighted == nullptr) return;
    // weighted [C][lanes] += N^T [C][count] P [count][lanes]
    multiply<T, true>(negatives_, 1, channels_, channels_, count_, scores_, work.weighted);
  }

 private:
  void replace_scores(const TileWork<VectorIsa>& work) {
    switch (mode_) {
      case TileMode::kLogistic:
        return replace_scores<Power::kLogistic>(work);
      case TileMode::kColumnExp:
        return replace_scores<Power::kColumnExp>(work);
      case TileMode::kColumnLogistic:
        return replace_scores<Power::kColumnLogistic>(work);
      default:
        return replace_scores<Power::kShifted>(work);
    }
  }

  template <Power kPower>
  void replace_scores(const TileWork<VectorIsa>& work) {
    work.mask.any ? replace_scores<kPower, true>(work) : replace_scores<kPower, false>(work);
  }

  template <Power kPower, bool kMasked>
  void replace_scores(const TileWork<VectorIsa>& work) {
    for (int v = 0; v < kBlockVectors; ++v) {
      const int lane = v * kWidth;
      const Vector<T> lane_shift = load(work.shift + lane);
      const VectorMask<T> masked(work.mask, lane);
      Vector<T> total = {}, margin = {};
      for (int negative = 0; negative < count_; ++negative) {
        T* score = scores_ + negative * kLanes + lane;
        Vector<T> x = load(score);
        x = is_by_column(kPower) ? x - work.column_shift[negative] : x - lane_shift;
        Vector<T> probability;
        if constexpr (is_logistic(kPower)) {
          const Vector<T> power = exp2<T>(x > 0 ? -x : x);
          probability = (x > 0 ? power : T(1) - Vector<T>{}) / (T(1) + power);
          if constexpr (kPower == Power::kLogistic) {
            Vector<T> part = (x < 0 ? T(kLn2) * -x : Vector<T>{}) + log1p<T>(power);
            if (kMasked) part = masked(negative) ? Vector<T>{} : part;
            margin += part;
          }
        } else {
          if (kPower == Power::kColumnExp) x = x < 0 ? x : Vector<T>{};
          probability = exp2<T>(x);
        }
        if (is_by_column(kPower)) probability *= work.column_weight[negative];
        if (kMasked) probability = masked(negative) ? Vector<T>{} : probability;
        total += probability;
        store(score, probability);
      }
      for (int i = 0; i < kWidth; ++i) work.sum[lane + i] += total[i];
      if constexpr (kPower == Power::kLogistic) {
        for (int i = 0; i < kWidth; ++i) work.margin[lane + i] += margin[i];
      }
    }
  }

  int64_t channels_;
  TileMode mode_;
  T* scores_;  // [kUnitNegatives][kLanes]; probabilities after replace_scores()
  const T* negatives_ = nullptr;
  int count_ = 0;
};

template <typename T>
constexpr TileKernel vector_kernel(const char* instruction_set, DType type) {
  using Isa = VectorIsa<T>;
  return {
      .instruction_set = instruction_set,
      .element = type,
      .anchor = type,
      .accumulator = type,
      .tile_slots = Isa::kLanes,
      .anchor_parts = Isa::kAnchorParts,
      .channel_pairs = 1,
      .channel_multiple = 8,
      .unit_negatives = Isa::kUnitNegatives,
      .scratch_bytes = Isa::scratch_bytes,
      .run = &run_tile_group<Isa>,
  };
}

const TileKernel* find_vector_kernel(const char* instruction_set, Arithmetic arithmetic) {
  static const TileKernel for_float = vector_kernel<float>(instruction_set, DType::kFloat32);
  static const TileKernel for_double = vector_kernel<double>(instruction_set, DType::kFloat64);
  if (arithmetic == Arithmetic::kFloat32 || arithmetic == Arithmetic::kVectorFloat32) {
    return &for_float;
  }
  if (arithmetic == Arithmetic::kFloat64) return &for_double;
  return nullptr;
}

}  // namespace
}  // namespace cac::cpu
