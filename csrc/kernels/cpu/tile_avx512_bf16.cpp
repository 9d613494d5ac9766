#include "kernels/cpu/bf16_isa.h"
#include "kernels/cpu/peak.h"

namespace cac::cpu {
namespace {

// Products by vdpbf16ps, which keeps the vector units busy alone: the exponentials follow later.
class DotProduct {
 public:
  template <int kParts, bool kAccumulate, class Between>
  static void multiply(const Operand& a, int64_t rows, int64_t depth, const uint16_t* b, float* c,
                       int64_t c_rows, Between&& between) {
    static_assert(kParts == 1);
    for (int64_t row = 0; row < rows; row += kRows) {
      multiply_rows<kAccumulate>(a, row, depth, b, c + row % c_rows * kBf16Lanes);
      between(static_cast<int>(row), static_cast<int>(row + kRows));
    }
  }

 private:
  static constexpr int kRows = 8;
  static constexpr int kVectors = kBf16Lanes / 16;

  template <bool kAccumulate>
  static void multiply_rows(const Operand& a, int64_t row, int64_t depth, const uint16_t* b,
                            float* c) {
    const uint16_t* rows = a.data + row / 16 * a.row_blocks + row % 16 * a.row_stride;
    __m512 block[kRows][kVectors];
    for (int r = 0; r < kRows; ++r) {
      for (int v = 0; v < kVectors; ++v) {
        block[r][v] =
            kAccumulate ? _mm512_loadu_ps(c + r * kBf16Lanes + v * 16) : _mm512_setzero_ps();
      }
    }
    for (int64_t k = 0; k < depth; k += 2) {
      const uint16_t* column = rows + k / 32 * a.depth_blocks + k % 32;
      __m512bh lanes[kVectors];
      for (int v = 0; v < kVectors; ++v) {
        lanes[v] = (__m512bh)_mm512_loadu_si512(b + k * kBf16Lanes + v * 32);
      }
      for (int r = 0; r < kRows; ++r) {
        int32_t pair;
        std::memcpy(&pair, column + r * a.row_stride, sizeof(pair));
        const __m512bh element = (__m512bh)_mm512_set1_epi32(pair);
        for (int v = 0; v < kVectors; ++v) {
          block[r][v] = _mm512_dpbf16_ps(block[r][v], lanes[v], element);
        }
      }
    }
    for (int r = 0; r < kRows; ++r) {
      for (int v = 0; v < kVectors; ++v) {
        _mm512_storeu_ps(c + r * kBf16Lanes + v * 16, block[r][v]);
      }
    }
  }
};

constexpr int kPeakRows = 8;
constexpr int kPeakVectors = 3;

double run_peak(int64_t repetitions, double half) {
  // Sums that do not wait for one another, as many as fit into registers. Each pair of products
  // adds up to zero.
  const __m512 positive = _mm512_set1_ps(static_cast<float>(half));
  const __m512 negative = _mm512_set1_ps(static_cast<float>(-half));
  const __m512bh halves = (__m512bh)round_to_bf16(positive, positive);
  const __m512bh pairs = (__m512bh)interleave(round_to_bf16(positive, negative));
  __m512 sums[kPeakRows][kPeakVectors];
  for (int r = 0; r < kPeakRows; ++r) {
    for (int v = 0; v < kPeakVectors; ++v) {
      sums[r][v] = _mm512_set1_ps(static_cast<float>(half * (r * kPeakVectors + v)));
    }
  }
  for (int64_t i = 0; i < repetitions; ++i) {
    for (int r = 0; r < kPeakRows; ++r) {
      for (int v = 0; v < kPeakVectors; ++v) {
        sums[r][v] = _mm512_dpbf16_ps(sums[r][v], pairs, halves);
      }
    }
  }
  __m512 total = _mm512_setzero_ps();
  for (int r = 0; r < kPeakRows; ++r) {
    for (int v = 0; v < kPeakVectors; ++v) total = _mm512_add_ps(total, sums[r][v]);
  }
  return _mm512_reduce_add_ps(total);
}

}  // namespace

// Not for split numbers: they need three products, and vdpbf16ps multiplies at most twice as fast
// as float32 instructions do.
const TileKernel* avx512_bf16_kernel(Arithmetic arithmetic) {
  return arithmetic == Arithmetic::kBFloat16 ? bf16_kernel<DotProduct, 1>("avx512_bf16") : nullptr;
}

const PeakLoop* avx512_bf16_peak(DType type) {
  static constexpr PeakLoop loop = {2.0 * kPeakRows * kPeakVectors * 32, &run_peak};
  return type == DType::kBFloat16 ? &loop : nullptr;
}

}  // namespace cac::cpu
