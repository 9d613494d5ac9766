#include "kernels/cpu/bf16_isa.h"
#include "kernels/cpu/peak.h"

namespace cac::cpu {
namespace {

// All eight registers, each 16 rows of 64 bytes, while it lives.
class AmxRegisters {
 public:
  AmxRegisters() {
    struct {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } shape;
    static_assert(sizeof(shape) == 64);
    _tile_loadconfig(&shape);
  }
  ~AmxRegisters() { _tile_release(); }
};

// Products by AMX, whose registers hold 16 x 16 float32. Registers 0-3 hold a block of C, 4-5 one
// of A, 6-7 one of B.
class AmxProduct {
 public:
  template <int kParts, bool kAccumulate, class Between>
  void multiply(const Operand& a, int64_t rows, int64_t depth, const uint16_t* b, float* c,
                int64_t c_rows, Between&& between) {
    const int steps = static_cast<int>(depth / 32);
    const int products = kParts * (kParts + 1) / 2 * steps;
    int done = 0;
    for (int64_t row = 0; row < rows; row += 32) {
      // After each product an even number of the rows before, as equal as that allows.
      const auto between_products = [&](int product) __attribute__((always_inline)) {
        if (row == 0) return;
        const int end = static_cast<int>(row) - 32 + 16 * (product + 1) / products * 2;
        between(done, end);
        done = end;
      };
      // The compiler does not know that _tile_loadd reads memory: keep it from delaying stores.
      asm volatile("" ::: "memory");
      multiply_rows<kParts, kAccumulate>(a, row, steps, b, c + row % c_rows * kBf16Lanes,
                                         between_products);
    }
    between(done, static_cast<int>(rows));
  }

 private:
  static constexpr int kRowBytes = kBf16Lanes * sizeof(float);  // of C, and of a row pair of B

  // 32 rows of C, two by two blocks.
  template <int kParts, bool kAccumulate, class Between>
  [[gnu::always_inline]] static inline void multiply_rows(const Operand& a, int64_t row, int steps,
                                                          const uint16_t* b, float* c,
                                                          Between&& between) {
    const uint16_t* rows = a.data + row / 16 * a.row_blocks;
    float* lower = c + 16 * kBf16Lanes;
    // Three parts give the accuracy of float32: sums begin at zero with the small products, whose
    // rounding does not matter then, and are added to C last.
    constexpr bool kFromZero = kParts == 3 || !kAccumulate;
    begin_block<kFromZero>(c, c + 16, lower, lower + 16);
    int product = 0;
    const auto multiply_add = [&]() __attribute__((always_inline)) {
      multiply_add_registers();
      between(product++);
    };
    for (int step = 0; step < steps; ++step) {
      const auto a_part = [&](int part) { return rows + part * a.parts + step * a.depth_blocks; };
      const auto b_part = [&](int part) { return b + 32 * (part * steps + step) * kBf16Lanes; };
      // One of the two operands stays in its registers from each product to the next.
      load(a_part(0), a, b_part(kParts - 1));
      multiply_add();
      if constexpr (kParts == 2) {
        load_b(b_part(0));
        multiply_add();
        load_a(a_part(1), a);
        multiply_add();
      } else if constexpr (kParts == 3) {
        load_b(b_part(1));
        multiply_add();
        load_a(a_part(1), a);
        multiply_add();
        load_b(b_part(0));
        multiply_add();
        load_a(a_part(2), a);
        multiply_add();
      }
    }
    if constexpr (kParts == 3) {
      for (int step = 0; step < steps; ++step) {
        load(rows + step * a.depth_blocks, a, b + 32 * step * kBf16Lanes);
        multiply_add();
      }
    }
    if constexpr (kAccumulate && kFromZero) {
      alignas(64) float sums[32 * kBf16Lanes];
      end_block(sums, sums + 16, sums + 16 * kBf16Lanes, sums + 16 * kBf16Lanes + 16);
      asm volatile("" ::: "memory");  // _tile_stored writes to it
      for (int i = 0; i < 32 * kBf16Lanes; i += 16) {
        _mm512_store_ps(c + i, _mm512_add_ps(_mm512_load_ps(c + i), _mm512_load_ps(sums + i)));
      }
    } else {
      end_block(c, c + 16, lower, lower + 16);
    }
  }

  [[gnu::always_inline]] static inline void load(const uint16_t* from_a, const Operand& a,
                                                 const uint16_t* from_b) {
    _tile_loadd(4, from_a, a.row_stride * 2);
    load_b(from_b);
    _tile_loadd(5, from_a + a.row_blocks, a.row_stride * 2);
  }

  [[gnu::always_inline]] static inline void load_a(const uint16_t* from, const Operand& a) {
    _tile_loadd(4, from, a.row_stride * 2);
    _tile_loadd(5, from + a.row_blocks, a.row_stride * 2);
  }

  [[gnu::always_inline]] static inline void load_b(const uint16_t* from) {
    _tile_loadd(6, from, kRowBytes);
    _tile_loadd(7, from + 32, kRowBytes);
  }

  [[gnu::always_inline]] static inline void multiply_add_registers() {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }

  template <bool kFromZero>
  [[gnu::always_inline]] static inline void begin_block(const float* c0, const float* c1,
                                                        const float* c2, const float* c3) {
    if (kFromZero) {
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
    } else {
      _tile_loadd(0, c0, kRowBytes);
      _tile_loadd(1, c1, kRowBytes);
      _tile_loadd(2, c2, kRowBytes);
      _tile_loadd(3, c3, kRowBytes);
    }
  }

  [[gnu::always_inline]] static inline void end_block(float* c0, float* c1, float* c2, float* c3) {
    _tile_stored(0, c0, kRowBytes);
    _tile_stored(1, c1, kRowBytes);
    _tile_stored(2, c2, kRowBytes);
    _tile_stored(3, c3, kRowBytes);
  }

  AmxRegisters registers_;
};

// Six sums that do not wait for one another, in registers 0-5. The products add up to zero.
double run_peak(int64_t repetitions, double half) {
  const AmxRegisters registers;
  const __m512 positive = _mm512_set1_ps(static_cast<float>(half));
  const __m512 negative = _mm512_set1_ps(static_cast<float>(-half));
  alignas(64) uint16_t halves[16 * 32], pairs[16 * 32];
  for (int row = 0; row < 16; ++row) {
    _mm512_store_si512(halves + row * 32, round_to_bf16(positive, positive));
    _mm512_store_si512(pairs + row * 32, interleave(round_to_bf16(positive, negative)));
  }
  asm volatile("" ::: "memory");
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  _tile_zero(5);
  _tile_loadd(6, halves, 64);
  _tile_loadd(7, pairs, 64);
  for (int64_t i = 0; i < repetitions; ++i) {
    _tile_dpbf16ps(0, 6, 7);
    _tile_dpbf16ps(1, 6, 7);
    _tile_dpbf16ps(2, 6, 7);
    _tile_dpbf16ps(3, 6, 7);
    _tile_dpbf16ps(4, 6, 7);
    _tile_dpbf16ps(5, 6, 7);
  }
  alignas(64) float sums[16 * 16];
  _tile_stored(0, sums, 64);
  asm volatile("" ::: "memory");
  return sums[0];
}

}  // namespace

const TileKernel* amx_kernel(Arithmetic arithmetic) {
  switch (arithmetic) {
    case Arithmetic::kBFloat16:
      return bf16_kernel<AmxProduct, 1>("amx");
    case Arithmetic::kSplitBFloat16:
      return bf16_kernel<AmxProduct, 2>("amx");
    case Arithmetic::kFloat32:  // six products are faster still than float32 instructions
      return bf16_kernel<AmxProduct, 3>("amx");
    default:
      return nullptr;
  }
}

const PeakLoop* amx_peak(DType type) {
  static constexpr PeakLoop loop = {6 * 2.0 * 16 * 16 * 32, &run_peak};
  return type == DType::kBFloat16 ? &loop : nullptr;
}

}  // namespace cac::cpu
