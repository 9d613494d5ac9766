#include "kernels/cpu/rows.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>
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
double widen(float value) { return value; }
double widen(BFloat16 value) { return from_bits(uint32_t(value.bits) << 16); }
double widen(Float16 value) {
  // Shifting exponent and mantissa into place leaves the value scaled by 2^-112, exactly, also for
  // subnormal numbers; infinity and nan need the largest exponent set by hand.
  const uint32_t magnitude = uint32_t(value.bits & 0x7fff) << 13;
  const float scaled = from_bits(magnitude) * 0x1p+112f;
  const float finite_or_special =
      (value.bits & 0x7c00) == 0x7c00 ? from_bits(magnitude | 0x7f800000) : scaled;
  return (value.bits & 0x8000) ? -finite_or_special : finite_or_special;
}

void narrow(double value, double& out) { out = value; }
void narrow(double value, float& out) { out = static_cast<float>(value); }
void narrow(double value, BFloat16& out) {
  const uint32_t bits = to_bits(static_cast<float>(value));
  const bool is_nan = (bits & 0x7fffffff) > 0x7f800000;
  // Round to nearest even; a nan must not be rounded into infinity.
  out.bits = is_nan ? 0x7fc0 : static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
void narrow(double value, Float16& out) {
  const float single = static_cast<float>(value);
  const uint32_t bits = to_bits(single);
  const uint16_t sign = (bits >> 16) & 0x8000;
  const uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) {
    out.bits = sign | 0x7e00;  // nan
  } else if (magnitude >= 0x477ff000) {
    out.bits = sign | 0x7c00;  // 65520 and more round to infinity
  } else if (magnitude < 0x38800000) {
    // Subnormal: adding 0.5 puts the unit of the last place of fp16 into that of float.
    out.bits = sign | static_cast<uint16_t>(to_bits(from_bits(magnitude) + 0.5f) - 0x3f000000);
  } else {
    out.bits = sign | static_cast<uint16_t>(
                          (magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13);
  }
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

double row_norm(const double* row, int64_t channels) {
  // Four chains: the order of summation is fixed, and the additions overlap.
  double sums[4] = {};
  int64_t c = 0;
  for (; c + 4 <= channels; c += 4) {
    for (int i = 0; i < 4; ++i) sums[i] += row[c + i] * row[c + i];
  }
  for (; c < channels; ++c) sums[0] += row[c] * row[c];
  return std::sqrt((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

void prepare_rows(const PrepareRows& rows, const ParallelFor& parallel_for) {
  for_row_ranges(rows.num_rows, parallel_for, [&](int64_t begin, int64_t end) {
    std::vector<double> row(rows.padded_channels, 0.0);
    for (int64_t i = begin; i < end; ++i) {
      read_row(rows.source, rows.source_dtype, rows.order[i] * rows.row_stride, rows.channels,
               row.data());
      if (rows.normalize) {
        const double scale = 1.0 / std::max(row_norm(row.data(), rows.channels), kMinNorm);
        for (int64_t c = 0; c < rows.channels; ++c) row[c] *= scale;
      }
      write_row(row.data(), rows.padded_channels, rows.destination_dtype,
                i * rows.padded_channels, rows.destination);
    }
  });
}

int64_t find_non_finite(const void* data, DType type, int64_t rows, int64_t row_stride,
                        int64_t channels, const ParallelFor& parallel_for) {
  constexpr int64_t kNone = std::numeric_limits<int64_t>::max();
  std::atomic<int64_t> first{kNone};
  for_row_ranges(rows, parallel_for, [&](int64_t begin, int64_t end) {
    with_type(type, [&](auto element) {
      for (int64_t i = begin; i < end; ++i) {
        const auto* row = static_cast<const decltype(element)*>(data) + i * row_stride;
        double sum = 0;  // of zeros, unless an element is infinite or nan
        for (int64_t c = 0; c < channels; ++c) sum += widen(row[c]) * 0.0;
        if (sum == 0.0) continue;
        int64_t c = 0;
        while (std::isfinite(widen(row[c]))) ++c;
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
