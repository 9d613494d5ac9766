// Reads rows of any feature type and prepares the negatives.
#pragma once

#include <cstdint>
#include <functional>

#include "kernels/problem.h"

namespace cac::cpu {

// Runs body(task) for every task in [0, tasks), in any order, on all available threads.
using ParallelFor = std::function<void(int64_t tasks, const std::function<void(int64_t)>& body)>;

// Reads `channels` elements as double.
void read_row(const void* data, DType type, int64_t first_element, int64_t channels, double* row);

// Writes `channels` doubles, rounded to `type`.
void write_row(const double* row, int64_t channels, DType type, int64_t first_element, void* data);

// Euclidean length; inf if it exceeds the range of double.
double row_norm(const double* row, int64_t channels);

// Lengths beyond this are rare, and their squares or quotients could leave the range of double.
constexpr double kHugeNorm = 1e150;

// The length of the longest of `rows` rows.
double largest_norm(const void* data, DType type, int64_t rows, int64_t row_stride,
                    int64_t channels, const ParallelFor& parallel_for);

void prepare_rows(const PrepareRows& rows, const ParallelFor& parallel_for);

// Index row * channels + channel of the first element that is not finite, or -1.
int64_t find_non_finite(const void* data, DType type, int64_t rows, int64_t row_stride,
                        int64_t channels, const ParallelFor& parallel_for);

}  // namespace cac::cpu
