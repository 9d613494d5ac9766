// The matrix units of the emulated device: ldmatrix and mma.sync.
#define CAC_EMULATION_HOST
#include "device_emulation.h"

namespace cac::emulation {

int64_t matrix_products = 0;

namespace {

double element(Format format, const uint32_t* fragment, int index) {
  const auto half = static_cast<uint16_t>(fragment[index / 2] >> (16 * (index % 2)));
  switch (format) {
    case Format::kBFloat16:
      return bit_cast<float>(static_cast<uint32_t>(half) << 16);
    case Format::kFloat16:
      return bit_cast<_Float16>(half);
    case Format::kTensorFloat32:
      return bit_cast<float>(fragment[index] & 0xffffe000u);
  }
  return 0;
}

// Tensor cores cut sums off towards zero, while IEEE addition rounds to nearest.
float round_towards_zero(double x) {
  const float y = static_cast<float>(x);
  if (!(std::fabs(static_cast<double>(y)) > std::fabs(x)) || std::isinf(x)) return y;
  return bit_cast<float>(bit_cast<uint32_t>(y) - 1);
}

}  // namespace

void load_matrices(uint32_t (&matrices)[4], const char* row, bool transposed) {
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) fail("ldmatrix: misaligned row");
  struct Operand {
    const char* row;
    bool transposed;
  };
  struct Result {
    uint32_t matrices[4];
  };
  const Result result = collective<Operand, Result>(
      transposed ? "ldmatrix.trans" : "ldmatrix", Operand{row, transposed},
      [](const Operand** in, Result** out) {
        for (int matrix = 0; matrix < 4; ++matrix) {
          uint16_t elements[8][8];
          for (int r = 0; r < 8; ++r) std::memcpy(elements[r], in[matrix * 8 + r]->row, 16);
          for (int lane = 0; lane < 32; ++lane) {
            const int r = lane / 4;
            const int c = lane % 4 * 2;
            const bool transposed = in[lane]->transposed;
            const uint32_t low = transposed ? elements[c][r] : elements[r][c];
            const uint32_t high = transposed ? elements[c + 1][r] : elements[r][c + 1];
            out[lane]->matrices[matrix] = low | high << 16;
          }
        }
      });
  std::copy(result.matrices, result.matrices + 4, matrices);
}

void matrix_product(Format format, Float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                    uint32_t b1) {
  struct Operand {
    Format format;
    const Float* d;
    const uint32_t* a;
    uint32_t b[2];
  };
  struct Result {
    Float d[4];
  };
  const Result result = collective<Operand, Result>(
      "mma.sync", Operand{format, d, a, {b0, b1}}, [](const Operand** in, Result** out) {
        const Format format = in[0]->format;
        const bool wide = format == Format::kTensorFloat32;
        const int depth = wide ? 8 : 16;
        double a[16][16];
        double b[16][8];
        for (int lane = 0; lane < 32; ++lane) {
          const int group = lane / 4;
          const int pair = lane % 4;
          for (int i = 0; i < (wide ? 4 : 8); ++i) {
            const int row = wide ? group + i % 2 * 8 : group + i / 2 % 2 * 8;
            const int column = wide ? pair + i / 2 * 4 : pair * 2 + i % 2 + i / 4 * 8;
            a[row][column] = element(format, in[lane]->a, i);
          }
          for (int i = 0; i < (wide ? 2 : 4); ++i) {
            const int row = wide ? pair + i * 4 : pair * 2 + i % 2 + i / 2 * 8;
            b[row][group] = element(format, in[lane]->b, i);
          }
        }
        for (int row = 0; row < 16; ++row) {
          const int first_lane = row % 8 * 4;
          const int first = row / 8 * 2;
          double sums[8];
          for (int column = 0; column < 8; ++column) {
            sums[column] = static_cast<double>(in[first_lane + column / 2]->d[first + column % 2]);
          }
          for (int k = 0; k < depth; ++k) {
            for (int column = 0; column < 8; ++column) sums[column] += a[row][k] * b[k][column];
          }
          for (int column = 0; column < 8; ++column) {
            out[first_lane + column / 2]->d[first + column % 2] =
                Float::result(round_towards_zero(sums[column]));
          }
        }
        ++matrix_products;
      });
  std::copy(result.d, result.d + 4, d);
}

}  // namespace cac::emulation
