// How the factors of the two matrix products are multiplied, one struct a precision.
//
// Each gives the type of the features in shared memory, the product of one fragment of anchors or
// probabilities with one of negatives, and the range of the probabilities. All sums are float32.
#pragma once

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/elements.cuh"

namespace cac::cuda {

// Elements of 16 bits: m16n8k16; the second product reads the negatives by transposed ldmatrix.
struct BFloat16Arithmetic {
  using Element = uint16_t;
  static constexpr int kMinimumArchitecture = 800;
  // Probabilities p are multiplied as 2^kExponentOffset p. bfloat16 has the range of float32 and
  // needs no offset.
  static constexpr int kExponentOffset = 0;
  // Whether long sums are kept outside the tensor cores, which cut sums off towards zero.
  static constexpr bool kSumsOutsideTensorCores = false;

  static __device__ __forceinline__ Element round(float x) { return float_to_bf16(x); }
  // Of the two elements of a word.
  static __device__ __forceinline__ bool all_finite(uint32_t bits) {
    return (bits & 0x7f80u) != 0x7f80u && (bits & 0x7f800000u) != 0x7f800000u;
  }
  static __device__ __forceinline__ uint32_t pack(float low, float high) {
    return device::pack_bf16(low, high);
  }
  static __device__ __forceinline__ void multiply(float (&d)[4], const uint32_t (&a)[4],
                                                  uint32_t b0, uint32_t b1) {
    device::multiply_bf16(d, a, b0, b1);
  }
};

struct Float16Arithmetic {
  using Element = uint16_t;
  static constexpr int kMinimumArchitecture = 750;
  // The normal range of float16 holds 2^15 p from p = 1 down to p = e^-20.1, the smallest p of the
  // bounded shift at temperature 0.1; p itself would underflow at e^-9.7.
  static constexpr int kExponentOffset = 15;
  static constexpr bool kSumsOutsideTensorCores = false;

  static __device__ __forceinline__ Element round(float x) { return device::float_to_f16(x); }
  static __device__ __forceinline__ bool all_finite(uint32_t bits) {
    return (bits & 0x7c00u) != 0x7c00u && (bits & 0x7c000000u) != 0x7c000000u;
  }
  static __device__ __forceinline__ uint32_t pack(float low, float high) {
    return device::pack_f16(low, high);
  }
  static __device__ __forceinline__ void multiply(float (&d)[4], const uint32_t (&a)[4],
                                                  uint32_t b0, uint32_t b1) {
    device::multiply_f16(d, a, b0, b1);
  }
};

// The multiplier drops the 13 lowest bits of a float32. Adding half of their range rounds to
// nearest instead, without a bias towards zero. Elements are stored so that nan stays nan
// (one_kind_of_nan); probabilities need not be, because the sum of the slot keeps their nan.
__device__ __forceinline__ uint32_t round_tf32(uint32_t bits) { return bits + 0x1000u; }

// Elements of 32 bits: m16n8k8.
struct TensorFloat32Arithmetic {
  using Element = float;
  static constexpr int kMinimumArchitecture = 800;
  static constexpr int kExponentOffset = 0;
  static constexpr bool kSumsOutsideTensorCores = false;

  static __device__ __forceinline__ Element round(float x) { return one_kind_of_nan(x); }
  static __device__ __forceinline__ bool all_finite(uint32_t bits) {
    return (bits & 0x7f800000u) != 0x7f800000u;
  }
  static __device__ __forceinline__ void multiply(float (&d)[4], const uint32_t (&a)[4],
                                                  uint32_t b0, uint32_t b1) {
    const uint32_t rounded[4] = {round_tf32(a[0]), round_tf32(a[1]), round_tf32(a[2]),
                                 round_tf32(a[3])};
    device::multiply_tf32(d, rounded, round_tf32(b0), round_tf32(b1));
  }
};

// One m16n8k8 fragment of a product, by value.
struct Fragments {
  float d[4];
  uint32_t a[4];
  uint32_t b[2];
};

// For GPUs without TF32: the product of the same fragments in float32, with operands that shuffles
// bring to the lanes. Many times slower than a matrix unit. Not inlined, because hundreds of copies
// would take minutes to compile.
static __device__ __attribute__((noinline)) Fragments multiply_by_shuffles(Fragments x) {
  const int group = static_cast<int>(threadIdx.x) % 32 / 4;
  const int pair = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
  for (int k = 0; k < 8; ++k) {
    float rows[2];
    float columns[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float a = device::bits_float(k < 4 ? x.a[i] : x.a[2 + i]);
      const float b = device::bits_float(k < 4 ? x.b[0] : x.b[1]);
      rows[i] = __shfl_sync(device::kFullWarp, a, 4 * group + k % 4);
      columns[i] = __shfl_sync(device::kFullWarp, b, 4 * (2 * pair + i) + k % 4);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) x.d[i] = fmaf(rows[i / 2], columns[i % 2], x.d[i]);
  }
  return x;
}

// float32-accurate: x = high + low, both TF32, and the three larger products, the small ones first.
// The omitted product is 2^-22 of the whole. The low part of an infinite element is nan.
struct Float32Arithmetic {
  using Element = float;
  static constexpr int kMinimumArchitecture = 750;
  static constexpr int kExponentOffset = 0;
  static constexpr bool kSumsOutsideTensorCores = true;

  static __device__ __forceinline__ Element round(float x) { return one_kind_of_nan(x); }
  static __device__ __forceinline__ bool all_finite(uint32_t bits) {
    return (bits & 0x7f800000u) != 0x7f800000u;
  }
  static __device__ __forceinline__ void split(uint32_t bits, uint32_t& high, uint32_t& low) {
    high = round_tf32(bits) & 0xffffe000u;
    low = device::float_bits(device::bits_float(bits) - device::bits_float(high));
  }
  static __device__ __forceinline__ void multiply(float (&d)[4], const uint32_t (&a)[4],
                                                  uint32_t b0, uint32_t b1) {
    if constexpr (device::kArchitecture < 800) {
      const Fragments product =
          multiply_by_shuffles({{d[0], d[1], d[2], d[3]}, {a[0], a[1], a[2], a[3]}, {b0, b1}});
#pragma unroll
      for (int i = 0; i < 4; ++i) d[i] = product.d[i];
    } else {
      uint32_t a_high[4];
      uint32_t a_low[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) split(a[i], a_high[i], a_low[i]);
      uint32_t b_high[2];
      uint32_t b_low[2];
      split(b0, b_high[0], b_low[0]);
      split(b1, b_high[1], b_low[1]);
      device::multiply_tf32(d, a_low, b_high[0], b_high[1]);
      device::multiply_tf32(d, a_high, b_low[0], b_low[1]);
      device::multiply_tf32(d, a_high, b_high[0], b_high[1]);
    }
  }
};

}  // namespace cac::cuda
