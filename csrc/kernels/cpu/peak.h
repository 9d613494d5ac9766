// The arithmetic rate of the processor: multiply-adds on registers alone, without memory traffic.
// No kernel multiplies faster with the same instructions.
#pragma once

#include <cstdint>

#include "kernels/problem.h"

namespace cac::cpu {

// Multiply-adds of one type with one instruction set.
struct PeakLoop {
  double operations;  // of a repetition; a multiplication and an addition count as two
  // Returns a number that depends on every product. `half` is 0.5, which the compiler must not
  // know.
  double (*run)(int64_t repetitions, double half);
};

// One per source file tile_<set>.cpp; null if the set multiplies this type with no instructions of
// its own.
const PeakLoop* portable_peak(DType type);
const PeakLoop* avx2_peak(DType type);
const PeakLoop* avx512_peak(DType type);
const PeakLoop* avx512_bf16_peak(DType type);
const PeakLoop* amx_peak(DType type);

// Operations a second of so many threads together: the best of some runs of a few milliseconds.
double measure_peak(const PeakLoop& loop, int threads);

}  // namespace cac::cpu
