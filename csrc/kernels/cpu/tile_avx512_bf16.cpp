#include "kernels/cpu/bf16_isa.h"

namespace cac::cpu {
namespace {

// C [rows][lanes] (+)= A [rows][depth] B [depth / 2][lanes][2] by vdpbf16ps.
struct DotProduct {
  static constexpr int kVectors = kBf16Lanes / 16;

  template <bool kAccumulate, int kRows = 12>
  static void multiply(const uint16_t* a, int64_t stride, int64_t rows, int64_t depth,
                       const uint16_t* b, float* c) {
    int64_t row = 0;
    for (; row + kRows <= rows; row += kRows) {
      multiply_block<kAccumulate, kRows>(a + row * stride, stride, depth, b, c + row * kBf16Lanes);
    }
    if constexpr (kRows > 1) {
      if (row < rows) {
        multiply<kAccumulate, kRows / 2>(a + row * stride, stride, rows - row, depth, b,
                                         c + row * kBf16Lanes);
      }
    }
  }

 private:
  template <bool kAccumulate, int kRows>
  static void multiply_block(const uint16_t* a, int64_t stride, int64_t depth, const uint16_t* b,
                             float* c) {
    __m512 block[kRows][kVectors];
    for (int r = 0; r < kRows; ++r) {
      for (int v = 0; v < kVectors; ++v) {
        block[r][v] = kAccumulate ? _mm512_loadu_ps(c + r * kBf16Lanes + v * 16)
                                  : _mm512_setzero_ps();
      }
    }
    for (int64_t k = 0; k < depth; k += 2) {
      __m512bh lanes[kVectors];
      for (int v = 0; v < kVectors; ++v) {
        lanes[v] = (__m512bh)_mm512_loadu_si512(b + k * kBf16Lanes + v * 32);
      }
      for (int r = 0; r < kRows; ++r) {
        int32_t pair;
        std::memcpy(&pair, a + r * stride + k, sizeof(pair));
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

}  // namespace

const TileKernel* avx512_bf16_kernel(DType element) {
  return find_bf16_kernel<DotProduct>("avx512_bf16", element);
}

}  // namespace cac::cpu
