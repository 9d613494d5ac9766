// Feature elements of any type, read as float and written from float.
#pragma once

#include "kernels/contrastive.h"
#include "kernels/cuda/device.cuh"
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

__device__ __forceinline__ float load_element(DType dtype, const void* base, int64_t index) {
  if (dtype == DType::kFloat32) return static_cast<const float*>(base)[index];
  const uint16_t bits = static_cast<const uint16_t*>(base)[index];
  return dtype == DType::kBFloat16 ? bf16_to_float(bits) : device::f16_to_float(bits);
}

__device__ __forceinline__ void store_element(DType dtype, void* base, int64_t index, float x) {
  if (dtype == DType::kFloat32) {
    static_cast<float*>(base)[index] = x;
  } else {
    static_cast<uint16_t*>(base)[index] =
        dtype == DType::kBFloat16 ? float_to_bf16(x) : device::float_to_f16(x);
  }
}

// Sum over the lanes of a warp, in the same order on every lane.
__device__ __forceinline__ float warp_sum(float x) {
  for (int lane_mask = 16; lane_mask > 0; lane_mask /= 2) {
    x += __shfl_xor_sync(device::kFullWarp, x, lane_mask);
  }
  return x;
}

__device__ __forceinline__ float warp_max(float x) {
  for (int lane_mask = 16; lane_mask > 0; lane_mask /= 2) {
    x = fmaxf(x, __shfl_xor_sync(device::kFullWarp, x, lane_mask));
  }
  return x;
}

// One row of at most kMaxChannels features: lane i of a warp holds the channels i, i + 32, ...
constexpr int kMaxChannels = 256;
constexpr int kLaneChannels = kMaxChannels / 32;

struct LaneRow {
  float values[kLaneChannels];
};

__device__ __forceinline__ LaneRow load_row(DType dtype, const void* base, int64_t first,
                                            int channels, int lane) {
  LaneRow row;
#pragma unroll
  for (int i = 0; i < kLaneChannels; ++i) {
    const int channel = lane + 32 * i;
    row.values[i] = channel < channels ? load_element(dtype, base, first + channel) : 0.0f;
  }
  return row;
}

__device__ __forceinline__ float dot(const LaneRow& x, const LaneRow& y) {
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kLaneChannels; ++i) sum = fmaf(x.values[i], y.values[i], sum);
  return warp_sum(sum);
}

// Makes the row unit length as torch.nn.functional.normalize does; returns its length before.
__device__ __forceinline__ float normalize_row(LaneRow& row) {
  const float norm = sqrtf(dot(row, row));
  const float inverse = 1.0f / fmaxf(norm, static_cast<float>(kMinNorm));
#pragma unroll
  for (int i = 0; i < kLaneChannels; ++i) row.values[i] *= inverse;
  return norm;
}

// Which of the two views holds an anchor.
__device__ __forceinline__ int anchor_view(const ContrastiveProblem& problem, int8_t direction) {
  return problem.objective == Objective::kContrastiveLoss && direction == kTowards1 ? 1 : 0;
}

}  // namespace cac::cuda
