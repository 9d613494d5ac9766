// Which instruction sets the processor has, and which kernel they select.
#pragma once

#include <string>
#include <vector>

#include "kernels/cpu/peak.h"
#include "kernels/cpu/tile_kernel.h"

namespace cac::cpu {

// Built and supported here, least to most capable: "portable", "avx2", "avx512", "avx512_bf16",
// "amx".
std::vector<std::string> cpu_capabilities();

// The most capable set that kernels may use; all of them by default. Throws std::invalid_argument
// for a set that cpu_capabilities() lacks. For tests and benchmarks: not to be called while
// kernels run.
void limit_cpu_capability(const std::string& name);
std::string cpu_capability();

// Null if no kernel in use multiplies so (bf16 without such instructions).
const TileKernel* find_tile_kernel(Arithmetic arithmetic);

// Those of cpu_capabilities() with instructions of their own that multiply this type.
std::vector<std::string> peak_capabilities(DType type);

// The fastest multiply-adds of a type with this set and those below it; null if none of them
// multiplies it (bf16 without such instructions). Throws as limit_cpu_capability() does.
const PeakLoop* find_peak_loop(DType type, const std::string& name);

}  // namespace cac::cpu
