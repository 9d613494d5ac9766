#include "kernels/cpu/bf16_isa.h"

namespace cac::cpu {
namespace {

// Products by AMX tiles of 16 x 16 float32. Tiles 0-3 hold a block of C, 4-5 of A, 6-7 of B.
class TileProduct {
 public:
  TileProduct() {
    struct {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } shape;
    static_assert(sizeof(shape) == 64);
    _tile_loadconfig(&shape);
  }
  ~TileProduct() { _tile_release(); }

  template <bool kSplit, bool kAccumulate, class Between>
  void multiply(const Operand& a, int64_t rows, int64_t depth, const uint16_t* b, float* c,
                int64_t c_rows, Between&& between) {
    const int steps = static_cast<int>(depth / 32);
    const int products = (kSplit ? 3 : 1) * steps;
    int done = 0;
    for (int64_t row = 0; row < rows; row += 32) {
      // Pieces of an even number of the rows before, as equal as that allows.
      const auto between_products = [&](int product) __attribute__((always_inline)) {
        if (row == 0) return;
        const int end = static_cast<int>(row) - 32 + 16 * (product + 1) / products * 2;
        between(done, end);
        done = end;
      };
      // The compiler does not know that tile loads read memory: keep it from delaying stores.
      asm volatile("" ::: "memory");
      multiply_rows<kSplit, kAccumulate>(a, row, steps, b, c + row % c_rows * kBf16Lanes,
                                         between_products);
    }
    between(done, static_cast<int>(rows));
  }

 private:
  static constexpr int kRowBytes = kBf16Lanes * sizeof(float);  // of C, and of a row pair of B

  // 32 rows of C, two by two blocks.
  template <bool kSplit, bool kAccumulate, class Between>
  [[gnu::always_inline]] static inline void multiply_rows(const Operand& a, int64_t row, int steps,
                                                          const uint16_t* b, float* c,
                                                          Between&& between) {
    const uint16_t* rows = a.data + row / 16 * a.row_blocks;
    float* lower = c + 16 * kBf16Lanes;
    begin_block<kAccumulate>(c, c + 16, lower, lower + 16);
    for (int step = 0; step < steps; ++step) {
      const uint16_t* a_step = rows + step * a.depth_blocks;
      const uint16_t* b_step = b + 32 * step * kBf16Lanes;
      if constexpr (kSplit) {
        // One of the two operands stays in its tiles from each product to the next.
        const int64_t b_low = 32 * steps * kBf16Lanes;
        load(a_step, a, b_step + b_low);
        multiply_add();
        between(3 * step);
        load_b(b_step);
        multiply_add();
        between(3 * step + 1);
        load_a(a_step + a.low, a);
        multiply_add();
        between(3 * step + 2);
      } else {
        load(a_step, a, b_step);
        multiply_add();
        between(step);
      }
    }
    end_block(c, c + 16, lower, lower + 16);
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

  [[gnu::always_inline]] static inline void multiply_add() {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }

  template <bool kAccumulate>
  [[gnu::always_inline]] static inline void begin_block(const float* c0, const float* c1,
                                                        const float* c2, const float* c3) {
    if (kAccumulate) {
      _tile_loadd(0, c0, kRowBytes);
      _tile_loadd(1, c1, kRowBytes);
      _tile_loadd(2, c2, kRowBytes);
      _tile_loadd(3, c3, kRowBytes);
    } else {
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
    }
  }

  [[gnu::always_inline]] static inline void end_block(float* c0, float* c1, float* c2, float* c3) {
    _tile_stored(0, c0, kRowBytes);
    _tile_stored(1, c1, kRowBytes);
    _tile_stored(2, c2, kRowBytes);
    _tile_stored(3, c3, kRowBytes);
  }
};

}  // namespace

const TileKernel* amx_kernel(Arithmetic arithmetic) {
  switch (arithmetic) {
    case Arithmetic::kBFloat16:
      return bf16_kernel<TileProduct, false>("amx");
    case Arithmetic::kSplitBFloat16:
      return bf16_kernel<TileProduct, true>("amx");
    default:
      return nullptr;
  }
}

}  // namespace cac::cpu
