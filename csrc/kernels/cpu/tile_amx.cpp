#include "kernels/cpu/bf16_isa.h"

namespace cac::cpu {
namespace {

// C [rows][lanes] (+)= A [rows][depth] B [depth / 2][lanes][2] by AMX tiles of 16 x 16 float32.
// Tiles 0-3 hold two by two blocks of C, 4-5 of A, 6-7 of B. Rows and depth are multiples of 32.
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

  template <bool kAccumulate>
  void multiply(const uint16_t* a, int64_t stride, int64_t rows, int64_t depth, const uint16_t* b,
                float* c) {
    constexpr int kRowBytes = kBf16Lanes * sizeof(float);  // of C, and of a pair of rows of B
    // The compiler does not know that tile loads read memory: keep it from delaying earlier stores.
    asm volatile("" ::: "memory");
    for (int64_t row = 0; row < rows; row += 32) {
      float* block = c + row * kBf16Lanes;
      if (kAccumulate) {
        _tile_loadd(0, block, kRowBytes);
        _tile_loadd(1, block + 16, kRowBytes);
        _tile_loadd(2, block + 16 * kBf16Lanes, kRowBytes);
        _tile_loadd(3, block + 16 * kBf16Lanes + 16, kRowBytes);
      } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
      }
      const uint16_t* a0 = a + row * stride;
      const uint16_t* a1 = a0 + 16 * stride;
      for (int64_t k = 0; k < depth; k += 32) {
        const uint16_t* bk = b + k * kBf16Lanes;
        _tile_loadd(4, a0 + k, stride * 2);
        _tile_loadd(6, bk, kRowBytes);
        _tile_loadd(7, bk + 32, kRowBytes);
        _tile_loadd(5, a1 + k, stride * 2);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
      _tile_stored(0, block, kRowBytes);
      _tile_stored(1, block + 16, kRowBytes);
      _tile_stored(2, block + 16 * kBf16Lanes, kRowBytes);
      _tile_stored(3, block + 16 * kBf16Lanes + 16, kRowBytes);
    }
  }
};

}  // namespace

const TileKernel* amx_kernel(DType element) { return find_bf16_kernel<TileProduct>("amx", element); }

}  // namespace cac::cpu
