// Multiply-adds on registers for float and double, on the vectors that the file is compiled for.
// Included once per instruction set: everything has internal linkage.
#pragma once

#include "kernels/cpu/peak.h"
#include "kernels/cpu/vector_isa.h"

namespace cac::cpu {
namespace {

// Each sum waits for its own last addition alone. There are as many as the products keep in
// registers, more than an instruction takes cycles on all units.
template <typename T>
double run_vector_peak(int64_t repetitions, double half) {
  const Vector<T> x = T(half) - Vector<T>{};
  Vector<T> sums[kBlockRows][kBlockVectors];
  for (int r = 0; r < kBlockRows; ++r) {
    for (int v = 0; v < kBlockVectors; ++v) sums[r][v] = x * T(r * kBlockVectors + v);
  }
  for (int64_t i = 0; i < repetitions; ++i) {
    for (int r = 0; r < kBlockRows; ++r) {
      // Approaches x / (1 - x) = 1: neither subnormal nor infinite.
      for (int v = 0; v < kBlockVectors; ++v) sums[r][v] = sums[r][v] * x + x;
    }
  }
  double total = 0.0;
  for (int r = 0; r < kBlockRows; ++r) {
    for (int v = 0; v < kBlockVectors; ++v) {
      for (int i = 0; i < VectorOf<T>::kWidth; ++i) total += sums[r][v][i];
    }
  }
  return total;
}

template <typename T>
constexpr double kVectorPeakOperations = 2.0 * kBlockRows * kBlockVectors * VectorOf<T>::kWidth;

const PeakLoop* find_vector_peak(DType type) {
  static constexpr PeakLoop for_float = {kVectorPeakOperations<float>, &run_vector_peak<float>};
  static constexpr PeakLoop for_double = {kVectorPeakOperations<double>, &run_vector_peak<double>};
  if (type == DType::kFloat32) return &for_float;
  return type == DType::kFloat64 ? &for_double : nullptr;
}

}  // namespace
}  // namespace cac::cpu
