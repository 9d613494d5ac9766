// Feature elements of any type, read as float and written from float.
#pragma once

#include <type_traits>

#include "kernels/cuda/device.cuh"
#include "kernels/problem.h"
#include "kernels/row_math.h"

namespace cac::cuda {

__host__ __device__ constexpr int element_bytes(DType dtype) {
  return dtype == DType::kFloat32 ? 4 : 2;
}

__device__ __forceinline__ float bf16_to_float(uint16_t bits) {
  return device::bits_float(static_cast<uint32_t>(bits) << 16);
}

// Round to nearest even, on architectures without the instruction too.
__device__ __forceinline__ uint16_t float_to_bf16(float x) {
  const uint32_t bits = device::float_bits(x);
  if (x != x) return 0x7fff;
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// A GPU's arithmetic returns nan as 0x7fffffff, and a given nan may have any bits. A carry into
// them, as in round_tf32, would make a number of it. The matrix units therefore read this nan only.
__device__ __forceinline__ float one_kind_of_nan(float x) {
  return x != x ? device::bits_float(0x7fc00000u) : x;
}

// The form of an element in memory. All bits 0 are the number 0 in every type.
struct StoredFloat32 {
  using Bits = float;
  static __device__ __forceinline__ float decode(Bits bits) { return bits; }
  static __device__ __forceinline__ Bits encode(float x) { return one_kind_of_nan(x); }
};

struct StoredBFloat16 {
  using Bits = uint16_t;
  static __device__ __forceinline__ float decode(Bits bits) { return bf16_to_float(bits); }
  static __device__ __forceinline__ Bits encode(float x) { return float_to_bf16(x); }
};

struct StoredFloat16 {
  using Bits = uint16_t;
  static __device__ __forceinline__ float decode(Bits bits) { return device::f16_to_float(bits); }
  static __device__ __forceinline__ Bits encode(float x) { return device::float_to_f16(x); }
};

// Calls visit(StoredFloat32{}) or one of the others: one branch around whole rows. A branch around
// every element would make each load wait for the one before it.
template <class Visit>
__device__ __forceinline__ void visit_type(DType dtype, Visit visit) {
  if (dtype == DType::kFloat32) {
    visit(StoredFloat32{});
  } else if (dtype == DType::kBFloat16) {
    visit(StoredBFloat16{});
  } else {
    visit(StoredFloat16{});
  }
}

// Loads this lane's channels lane, lane + 32, ... of one row, zero from `channels` on. Decoding is
// separate, because it waits for the load: the loads of all rows are started first.
template <class Bits, int kCount>
__device__ __forceinline__ void load_bits(Bits (&bits)[kCount], const Bits* row, int channels,
                                          int lane) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const int channel = lane + 32 * i;
    bits[i] = channel < channels ? device::load_global(row + channel) : Bits{0};
  }
}

// Sum over the lanes of a warp, in the same order on every lane.
__device__ __forceinline__ float warp_sum(float x) {
  for (int lane_mask = 16; lane_mask > 0; lane_mask /= 2) {
    x += __shfl_xor_sync(device::kFullWarp, x, lane_mask);
  }
  return x;
}

// Ignores nan, as fmaxf does.
__device__ __forceinline__ float warp_max(float x) {
  for (int lane_mask = 16; lane_mask > 0; lane_mask /= 2) {
    x = fmaxf(x, __shfl_xor_sync(device::kFullWarp, x, lane_mask));
  }
  return x;
}

// One row of at most 32 kCount features: lane i of a warp holds the channels i, i + 32, ...
template <int kCount>
struct LaneRow {
  float values[kCount];
};

template <int kCount>
__device__ __forceinline__ LaneRow<kCount> load_row(DType dtype, const void* base, int64_t first,
                                                    int channels, int lane) {
  LaneRow<kCount> row;
  visit_type(dtype, [&](auto stored) {
    using Stored = decltype(stored);
    using Bits = typename Stored::Bits;
    Bits bits[kCount];
    load_bits(bits, static_cast<const Bits*>(base) + first, channels, lane);
#pragma unroll
    for (int i = 0; i < kCount; ++i) row.values[i] = Stored::decode(bits[i]);
  });
  return row;
}

template <int kCount>
__device__ __forceinline__ void store_row(DType dtype, void* base, int64_t first, int channels,
                                          int lane, const LaneRow<kCount>& row) {
  visit_type(dtype, [&](auto stored) {
    using Stored = decltype(stored);
    auto* target = static_cast<typename Stored::Bits*>(base) + first;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int channel = lane + 32 * i;
      if (channel < channels) target[channel] = Stored::encode(row.values[i]);
    }
  });
}

template <int kCount>
__device__ __forceinline__ void store_floats(float* target, int channels, int lane,
                                             const LaneRow<kCount>& row) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const int channel = lane + 32 * i;
    if (channel < channels) target[channel] = row.values[i];
  }
}

template <int kCount>
__device__ __forceinline__ float dot(const LaneRow<kCount>& x, const LaneRow<kCount>& y) {
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kCount; ++i) sum = fmaf(x.values[i], y.values[i], sum);
  return warp_sum(sum);
}

// The kernels that hold whole rows in a warp are compiled for two lengths of a row. Calls
// launch(std::integral_constant<int, kCount>{}) with the kCount of LaneRow.
template <class Launch>
void for_row_length(int64_t channels, Launch launch) {
  if (channels <= 256) {
    launch(std::integral_constant<int, 8>{});
  } else {
    launch(std::integral_constant<int, 32>{});
  }
}

// The length of a row before normalization. A row of kMinNorm or less has no direction.
struct RowNorm {
  float inverse;
  bool has_direction;
};

// Makes rows unit length as torch.nn.functional.normalize does, even if their squares leave the
// range of float32. A nan makes the whole row nan; an infinite element becomes nan itself.
template <int kRows, int kCount>
__device__ __forceinline__ void normalize_rows(float (&rows)[kRows][kCount],
                                               RowNorm (&norms)[kRows]) {
  float squares[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    squares[r] = 0.0f;
#pragma unroll
    for (int i = 0; i < kCount; ++i) squares[r] = fmaf(rows[r][i], rows[r][i], squares[r]);
    squares[r] = warp_sum(squares[r]);
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    float scale = 1.0f;
    if (!(squares[r] > 1e-20f && squares[r] < 1e36f)) {
      // The power of two that brings the largest magnitude near 1, so that nothing is rounded.
      float largest = 0.0f;
#pragma unroll
      for (int i = 0; i < kCount; ++i) largest = fmaxf(largest, fabsf(rows[r][i]));
      const int exponent = static_cast<int>(device::float_bits(warp_max(largest)) >> 23);
      scale = device::bits_float(static_cast<uint32_t>(exponent < 253 ? 254 - exponent : 1) << 23);
      squares[r] = 0.0f;
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        rows[r][i] *= scale;
        squares[r] = fmaf(rows[r][i], rows[r][i], squares[r]);
      }
      squares[r] = warp_sum(squares[r]);
    }
    const float minimum = static_cast<float>(kMinNorm) * scale;
    const float norm = sqrtf(squares[r]);
    norms[r].has_direction = !(norm <= minimum);  // true for nan
    const float inverse = 1.0f / (norms[r].has_direction ? norm : minimum);
    norms[r].inverse = inverse * scale;
#pragma unroll
    for (int i = 0; i < kCount; ++i) rows[r][i] *= inverse;
  }
}

template <int kCount>
__device__ __forceinline__ RowNorm normalize_row(LaneRow<kCount>& row) {
  RowNorm norms[1];
  normalize_rows(reinterpret_cast<float (&)[1][kCount]>(row.values), norms);
  return norms[0];
}

// The view that holds an anchor.
__device__ __forceinline__ int anchor_view(const ContrastiveProblem& problem, int8_t direction) {
  return problem.objective == Objective::kContrastiveLoss && direction == kSecondToFirst ? 1 : 0;
}

}  // namespace cac::cuda
