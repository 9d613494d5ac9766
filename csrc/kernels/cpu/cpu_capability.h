// Which instruction sets the processor has, and which kernel they select.
#pragma once

#include <string>
#include <vector>

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

}  // namespace cac::cpu
