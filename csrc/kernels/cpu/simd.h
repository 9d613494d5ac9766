// The compiler's vectors (GCC and Clang), exp2 on them, and the passes over the scores of a unit
// that serve all element types. Included once per instruction set: everything has internal linkage.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/cpu/tile_kernel.h"

namespace cac::cpu {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;  // SSE2, NEON
#endif

template <typename T>
struct Simd;

template <>
struct Simd<float> {
  using Integer = int32_t;
  static constexpr int kExponentShift = 23;
  static constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  static constexpr float kLowest = -126.0f;     // below: as good as zero, never subnormal
  // Minimax polynomial of 2^f on [-1/2, 1/2], relative error 1.9e-9.
  static constexpr int kDegree = 6;
  static constexpr float kExp2[] = {1.000000000554164796f,    0.6931472057371957513f,
                                    0.240226468906455207f,    0.05550328777105324799f,
                                    0.00961848895633118162f,  0.001339993117723973797f,
                                    0.0001534581216131162976f};
};

template <>
struct Simd<double> {
  using Integer = int64_t;
  static constexpr int kExponentShift = 52;
  static constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double kLowest = -1022.0;
  // Relative error 3.1e-18.
  static constexpr int kDegree = 11;
  static constexpr double kExp2[] = {
      0.9999999999999999971,    0.6931471805599453305,     0.240226506959101562,
      0.0555041086648199216,    0.009618129107588335244,   0.001333355814678992172,
      0.0001540353046251443206, 0.00001525273348998852565, 1.321543308967639918e-6,
      1.017819802167193084e-7,  7.074105613508142796e-9,   4.435282706957277151e-10};
};

template <typename T>
struct VectorOf {
  typedef T Type __attribute__((vector_size(kVectorBytes)));
  static constexpr int kWidth = kVectorBytes / sizeof(T);
};
template <typename T>
using Vector = typename VectorOf<T>::Type;

template <typename T>
inline Vector<T> load(const T* from) {
  Vector<T> value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}

template <typename T>
inline void store(T* to, Vector<T> value) {
  std::memcpy(to, &value, sizeof(value));
}

template <typename T>
inline Vector<T> exp2(Vector<T> x) {
  using Constants = Simd<T>;
  using Integers = Vector<typename Constants::Integer>;
  x = x > Constants::kLowest ? x : Constants::kLowest - Vector<T>{};
  const Vector<T> rounded = x + Constants::kRound;  // low bits: the integer part
  const Vector<T> fraction = x - (rounded - Constants::kRound);
  Vector<T> power = Constants::kExp2[Constants::kDegree] - Vector<T>{};
  for (int i = Constants::kDegree - 1; i >= 0; --i) power = power * fraction + Constants::kExp2[i];
  return (Vector<T>)((Integers)power + ((Integers)rounded << Constants::kExponentShift));
}

// log(1 + y) for 0 <= y <= 1 is 2 artanh(z), z = y / (2 + y) <= 1/3: 2 (z + z^3/3 + z^5/5 + ...).
// The terms left out are below 1e-8 (float) and 1e-17 (double) of the sum.
template <typename T>
constexpr int kLog1pTerms = sizeof(T) == 4 ? 7 : 16;

// 2 / (2 i + 1)
template <typename T>
constexpr T log1p_coefficient(int i) {
  return T(2) / T(2 * i + 1);
}

template <typename T>
inline Vector<T> log1p(Vector<T> y) {
  const Vector<T> z = y / (T(2) + y);
  const Vector<T> square = z * z;
  Vector<T> sum = log1p_coefficient<T>(kLog1pTerms<T> - 1) - Vector<T>{};
  for (int i = kLog1pTerms<T> - 2; i >= 0; --i) sum = sum * square + log1p_coefficient<T>(i);
  return sum * z;
}

// What replaces the score of a negative, with x = score - shift.
enum class Power {
  kUnshifted,       // 2^score
  kShifted,         // 2^x
  kLogistic,        // 1 / (1 + 2^x)
  kColumnExp,       // weight 2^x, shift and weight of the negative
  kColumnLogistic,  // weight / (1 + 2^x)
};

constexpr bool is_logistic(Power power) {
  return power == Power::kLogistic || power == Power::kColumnLogistic;
}
constexpr bool is_by_column(Power power) {
  return power == Power::kColumnExp || power == Power::kColumnLogistic;
}

constexpr double kLn2 = 0.693147180559945309;

// Which negatives of the unit are masked for which lanes.
struct LaneMask {
  bool any;                 // false: none, and the rest is not read
  bool interval_counts;     // masked is what is outside of the interval, not what is inside
  int32_t first_negative;   // of the unit
  const int32_t* begin;     // [lanes] intervals
  const int32_t* end;       // [lanes]
  const int32_t* excluded;  // [lanes] ids; null: none
  const int32_t* ids;       // of the unit's negatives; null: their numbers
};

// The mask of the lanes of one vector.
template <typename T>
class VectorMask {
 public:
  using Integer = typename Simd<T>::Integer;
  using Integers = Vector<Integer>;

  VectorMask(const LaneMask& mask, int first_lane) {
    if (!mask.any) return;
    ids_ = mask.ids;
    excludes_ = mask.excluded != nullptr;
    for (int i = 0; i < VectorOf<T>::kWidth; ++i) {
      const int lane = first_lane + i;
      begin_[i] = mask.begin[lane] - mask.first_negative;
      end_[i] = mask.end[lane] - mask.first_negative;
      outside_[i] = mask.interval_counts ? -1 : 0;
      if (excludes_) {
        excluded_[i] = mask.excluded[lane] - (ids_ == nullptr ? mask.first_negative : 0);
      }
    }
  }

  // All bits set in the lanes for which this negative of the unit is masked.
  [[gnu::always_inline]] inline Integers operator()(int negative) const {
    const Integers index = Integer(negative) - Integers{};
    Integers masked = ((index >= begin_) & (index < end_)) ^ outside_;
    if (excludes_) {
      const Integers id = Integer(ids_ == nullptr ? negative : ids_[negative]) - Integers{};
      masked |= id == excluded_;
    }
    return masked;
  }

 private:
  Integers begin_ = {}, end_ = {}, outside_ = {}, excluded_ = {};
  const int32_t* ids_ = nullptr;
  bool excludes_ = false;
};

// Raises the running maximum `shift` [lanes] to that of scores [count][kLanes] and rescales the
// sums of the old one.
template <typename T, int kLanes>
inline void raise_lane_maximum(const T* scores, int count, int64_t channels, const LaneMask& mask,
                               T* shift, double* sum, T* weighted) {
  constexpr int kWidth = VectorOf<T>::kWidth;
  for (int first = 0; first < kLanes; first += kWidth) {
    const VectorMask<T> masked(mask, first);
    const Vector<T> old = load(shift + first);
    Vector<T> maximum = old;
    for (int negative = 0; negative < count; ++negative) {
      const Vector<T> score = load(scores + negative * kLanes + first);
      const Vector<T> counted = masked(negative) ? old : score;
      maximum = counted > maximum ? counted : maximum;
    }
    const Vector<T> scale = exp2<T>(old - maximum);
    store(shift + first, maximum);
    for (int i = 0; i < kWidth; ++i) {
      if (maximum[i] == old[i]) continue;
      const int lane = first + i;
      sum[lane] *= scale[i];
      if (weighted == nullptr) continue;
      for (int64_t c = 0; c < channels; ++c) weighted[c * kLanes + lane] *= scale[i];
    }
  }
}

}  // namespace
}  // namespace cac::cpu
