#include "kernels/cpu/rows.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "kernels/row_math.h"

namespace cac::cpu {
namespace {

constexpr int64_t kRowsPerTask = 256;

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

uint32_t to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

double widen(double value) { return value; }
float widen(float value) { return value; }
float widen(BFloat16 value) { return from_bits(uint32_t(value.bits) << 16); }
float widen(Float16 value) {
  // Exponent and mantissa shifted into place are the value times 2^-112, exactly, also for
  // subnormal numbers; infinity and nan need the largest exponent set by hand. Without a branch, so
  // that loops over rows become vectors.
  const uint32_t sign = uint32_t(value.bits & 0x8000) << 16;
  const uint32_t magnitude = uint32_t(value.bits & 0x7fff) << 13;
  const uint32_t scaled = to_bits(from_bits(magnitude) * 0x1p+112f);
  const uint32_t special = magnitude >= 0x0f800000 ? 0x7f800000 : 0;
  return from_bits(scaled | special | sign);
}

void narrow(double value, double& out) { out = value; }
void narrow(float value, double& out) { out = value; }
void narrow(double value, float& out) { out = static_cast<float>(value); }
void narrow(float value, float& out) { out = value; }
void narrow(float value, BFloat16& out) {
  const uint32_t bits = to_bits(value);
  const bool is_nan = (bits & 0x7fffffff) > 0x7f800000;
  // Round to nearest even; a nan must not be rounded into infinity.
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  out.bits = static_cast<uint16_t>(is_nan ? 0x7fc0 : rounded);
}
void narrow(float value, Float16& out) {
  const uint32_t bits = to_bits(value);
  const uint16_t sign = (bits >> 16) & 0x8000;
  const uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) {
    out.bits = sign | 0x7e00;  // nan
  } else if (magnitude >= 0x477ff000) {
    out.bits = sign | 0x7c00;  // 65520 and more round to infinity
  } else if (magnitude < 0x38800000) {
    // Subnormal: adding 0.5 aligns the last place of fp16 with the last place of float.
    out.bits = sign | static_cast<uint16_t>(to_bits(from_bits(magnitude) + 0.5f) - 0x3f000000);
  } else {
    out.bits = sign | static_cast<uint16_t>(
                          (magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13);
  }
}
template <typename Half>
void narrow(double value, Half& out) {
  narrow(static_cast<float>(value), out);
}

bool is_finite(double value) { return std::isfinite(value); }
bool is_finite(float value) { return (to_bits(value) & 0x7f800000) != 0x7f800000; }
bool is_finite(BFloat16 value) { return (value.bits & 0x7f80) != 0x7f80; }
bool is_finite(Float16 value) { return (value.bits & 0x7c00) != 0x7c00; }

// The length of a row as `largest` times `rest`, for rows whose squares leave the range of their
// type. The product may be infinite.
struct ScaledNorm {
  double largest;  // magnitude of the row's largest element
  double rest;     // length of the row divided by `largest`; 0 for a row of zeros
};

template <typename T>
ScaledNorm scaled_norm(const T* row, int64_t channels) {
  double largest = 0;
  for (int64_t c = 0; c < channels; ++c) {
    largest = std::max(largest, std::abs(static_cast<double>(widen(row[c]))));
  }
  if (largest == 0) return {0, 0};
  double sum = 0;
  for (int64_t c = 0; c < channels; ++c) {
    const double element = widen(row[c]) / largest;
    sum += element * element;
  }
  return {largest, std::sqrt(sum)};
}

// Sixteen chains of additions overlap, and the order of summation is fixed.
template <typename T>
double norm(const T* row, int64_t channels) {
  using Wide = decltype(widen(*row));
  constexpr int kChains = 16;
  Wide sums[kChains] = {};
  int64_t c = 0;
  for (; c + kChains <= channels; c += kChains) {
    for (int i = 0; i < kChains; ++i) sums[i] += widen(row[c + i]) * widen(row[c + i]);
  }
  for (; c < channels; ++c) sums[0] += widen(row[c]) * widen(row[c]);
  double sum = 0;
  for (const Wide chain : sums) sum += chain;
  constexpr bool kFloat = sizeof(Wide) == sizeof(float);
  const bool in_range = sum > (kFloat ? 1e-25 : 1e-280) && sum < (kFloat ? 1e36 : 1e300);
  if (in_range) return std::sqrt(sum);
  const ScaledNorm scaled = scaled_norm(row, channels);
  return scaled.largest * scaled.rest;
}

template <class Body>
void with_type(DType type, const Body& body) {
  switch (type) {
    case DType::kFloat64:
      return body(double{});
    case DType::kFloat32:
      return body(float{});
    case DType::kBFloat16:
      return body(BFloat16{});
    case DType::kFloat16:
      return body(Float16{});
  }
}

void for_row_ranges(int64_t rows, const ParallelFor& parallel_for,
                    const std::function<void(int64_t, int64_t)>& body) {
  parallel_for((rows + kRowsPerTask - 1) / kRowsPerTask, [&](int64_t task) {
    body(task * kRowsPerTask, std::min(rows, (task + 1) * kRowsPerTask));
  });
}

}  // namespace

void read_row(const void* data, DType type, int64_t first_element, int64_t channels, double* row) {
  with_type(type, [&](auto element) {
    const auto* from = static_cast<const decltype(element)*>(data) + first_element;
    for (int64_t c = 0; c < channels; ++c) row[c] = widen(from[c]);
  });
}

void write_row(const double* row, int64_t channels, DType type, int64_t first_element, void* data) {
  with_type(type, [&](auto element) {
    auto* to = static_cast<decltype(element)*>(data) + first_element;
    for (int64_t c = 0; c < channels; ++c) narrow(row[c], to[c]);
  });
}

double row_norm(const double* row, int64_t channels) { return norm(row, channels); }

void prepare_rows(const PrepareRows& rows, const ParallelFor& parallel_for) {
  with_type(rows.source_dtype, [&](auto source) {
    with_type(rows.destination_dtype, [&](auto destination) {
      using Source = decltype(source);
      using Destination = decltype(destination);
      using Wide = decltype(widen(source));
      for_row_ranges(rows.num_rows, parallel_for, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const Source* from =
              static_cast<const Source*>(rows.source) + rows.order[i] * rows.row_stride;
          Destination* to = static_cast<Destination*>(rows.destination) + i * rows.padded_channels;
          const double length = rows.normalize ? norm(from, rows.channels) : 1.0;
          if (length < (sizeof(Wide) == sizeof(float) ? 1e30 : kHugeNorm)) {
            const Wide scale = static_cast<Wide>(1.0 / std::max(length, kMinNorm));
            for (int64_t c = 0; c < rows.channels; ++c) narrow(widen(from[c]) * scale, to[c]);
          } else {  // the reciprocal is subnormal, or the length infinite
            const ScaledNorm scaled = scaled_norm(from, rows.channels);
            for (int64_t c = 0; c < rows.channels; ++c) {
              narrow(widen(from[c]) / scaled.largest / scaled.rest, to[c]);
            }
          }
          std::memset(to + rows.channels, 0,
                      (rows.padded_channels - rows.channels) * sizeof(Destination));
        }
      });
    });
  });
}

double largest_norm(const void* data, DType type, int64_t rows, int64_t row_stride,
                    int64_t channels, const ParallelFor& parallel_for) {
  std::vector<double> largest((rows + kRowsPerTask - 1) / kRowsPerTask, 0.0);
  with_type(type, [&](auto element) {
    for_row_ranges(rows, parallel_for, [&](int64_t begin, int64_t end) {
      double& of_task = largest[begin / kRowsPerTask];
      for (int64_t i = begin; i < end; ++i) {
        const auto* row = static_cast<const decltype(element)*>(data) + i * row_stride;
        of_task = std::max(of_task, norm(row, channels));
      }
    });
  });
  return largest.empty() ? 0.0 : *std::max_element(largest.begin(), largest.end());
}

int64_t find_non_finite(const void* data, DType type, int64_t rows, int64_t row_stride,
                        int64_t channels, const ParallelFor& parallel_for) {
  constexpr int64_t kNone = std::numeric_limits<int64_t>::max();
  std::atomic<int64_t> first{kNone};
  with_type(type, [&](auto element) {
    for_row_ranges(rows, parallel_for, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const auto* row = static_cast<const decltype(element)*>(data) + i * row_stride;
        int non_finite = 0;  // counted without a branch, because usually all are finite
        for (int64_t c = 0; c < channels; ++c) non_finite += !is_finite(row[c]);
        if (non_finite == 0) continue;
        int64_t c = 0;
        while (is_finite(row[c])) ++c;
        int64_t seen = first.load();
        while (i * channels + c < seen && !first.compare_exchange_weak(seen, i * channels + c)) {
        }
        return;
      }
    });
  });
  return first.load() == kNone ? -1 : first.load();
}

}  // namespace cac::cpu
