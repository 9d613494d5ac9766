// A CUDA device in C++, small and strict: the functions of csrc/kernels/cuda/device.cuh on the CPU.
//
// The threads of a block are fibers. A collective (barrier, shuffle, ldmatrix, mma.sync, ...) holds
// a fiber until the others it needs arrive. `execution_order` decides which fiber runs meanwhile,
// so that code which relies on one order fails under another. Shared memory is an allocation of
// exactly the launched size, filled with NaN bits before every block. cp.async reads its source and
// writes its destination only when the copy is waited for, and poisons the destination until then.
// Misuse (threads of a warp at different collectives, a barrier that some threads never reach, a
// misaligned address) ends the process with a message. In the .cu sources the word `float` means
// Float, whose arithmetic returns nan with a GPU's bits.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

// The CUDA words of the sources.
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define threadIdx (::cac::emulation::thread_index())
#define blockIdx (::cac::emulation::block_index())
#define blockDim (::cac::emulation::block_size())
#define gridDim (::cac::emulation::grid_size())

struct CUstream_st;
using cudaStream_t = CUstream_st*;

struct int2 {
  int x, y;
};
inline int2 make_int2(int x, int y) { return {x, y}; }

namespace cac::emulation {

// std::bit_cast, which C++17 lacks.
template <class To, class From>
constexpr To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  return __builtin_bit_cast(To, from);
}

// A float32 of the device. Every operation whose result is nan returns kNan, as on a GPU; x86
// returns the bits of an operand or 0xffc00000 instead. Only copies keep the bits of a nan.
class Float {
 public:
  static constexpr uint32_t kNan = 0x7fffffffu;

  Float() = default;
  template <class T, class = std::enable_if_t<std::is_arithmetic_v<T>>>
  constexpr Float(T x) : value_(static_cast<float>(x)) {}
  template <class T, class = std::enable_if_t<std::is_arithmetic_v<T>>>
  explicit constexpr operator T() const {
    return static_cast<T>(value_);
  }

  static constexpr Float result(float x) { return x != x ? bit_cast<float>(kNan) : x; }

  constexpr Float operator-() const { return -value_; }
  friend constexpr Float operator+(Float x, Float y) { return result(x.value_ + y.value_); }
  friend constexpr Float operator-(Float x, Float y) { return result(x.value_ - y.value_); }
  friend constexpr Float operator*(Float x, Float y) { return result(x.value_ * y.value_); }
  friend constexpr Float operator/(Float x, Float y) { return result(x.value_ / y.value_); }
  Float& operator+=(Float x) { return *this = *this + x; }
  Float& operator*=(Float x) { return *this = *this * x; }
  friend constexpr bool operator==(Float x, Float y) { return x.value_ == y.value_; }
  friend constexpr bool operator!=(Float x, Float y) { return x.value_ != y.value_; }
  friend constexpr bool operator<(Float x, Float y) { return x.value_ < y.value_; }
  friend constexpr bool operator>(Float x, Float y) { return x.value_ > y.value_; }
  friend constexpr bool operator<=(Float x, Float y) { return x.value_ <= y.value_; }
  friend constexpr bool operator>=(Float x, Float y) { return x.value_ >= y.value_; }

 private:
  float value_;
};
static_assert(sizeof(Float) == 4 && std::is_trivially_copyable_v<Float>);

struct Index {
  unsigned x;
};
Index thread_index();
Index block_index();
Index block_size();
Index grid_size();

struct Settings {
  int multiprocessors = 2;
  int resident_blocks = 1;
  // Shared memory of a block in KiB; 0: the least that a GPU of the architecture has.
  int shared_kib = 0;
  // Order in which the warps of a block and the blocks of a grid run: 0 first to last, 1 last to
  // first, otherwise the seed of a random order.
  uint64_t execution_order = 0;
};
extern Settings settings;

// mma.sync instructions so far, for tests which promise that work is skipped.
extern int64_t matrix_products;
// Kernel launches so far.
extern int64_t launches;

// Every thread runs body(params).
void run_grid(int64_t blocks, int threads, int shared_bytes, void (*body)(const void* params),
              const void* params);

// The operands and results of the 32 lanes of a warp. `combine` runs once, when all 32 lanes have
// arrived. All of them must be at a collective of the same name.
struct Lanes {
  const void* operands[32];
  void* results[32];
};
void warp_collective(const char* name, const void* operand, void* result,
                     void (*combine)(Lanes& lanes));

template <class Operand, class Result, class Combine>
Result collective(const char* name, const Operand& operand, Combine combine) {
  struct Given {
    const Operand& operand;
    Combine combine;
  };
  const Given given{operand, combine};
  Result result{};
  warp_collective(name, &given, &result, [](Lanes& lanes) {
    const Operand* operands[32];
    Result* results[32];
    for (int lane = 0; lane < 32; ++lane) {
      operands[lane] = &static_cast<const Given*>(lanes.operands[lane])->operand;
      results[lane] = static_cast<Result*>(lanes.results[lane]);
    }
    static_cast<const Given*>(lanes.operands[0])->combine(operands, results);
  });
  return result;
}

void block_barrier();
// A barrier that returns to every thread whether one of them passed a true `predicate`.
bool block_vote(bool predicate);
char* shared_memory();
// Undoes device::mark_gap for this memory, so that it can be freed and reused.
void clear_gaps(void* begin, size_t bytes);
[[noreturn]] void fail(const std::string& what);

void issue_copy(char* destination, const void* source, bool valid);
void commit_copies();
void wait_for_copies(int in_flight);

enum class Format { kBFloat16, kFloat16, kTensorFloat32 };
void matrix_product(Format format, Float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
void load_matrices(uint32_t (&matrices)[4], const char* row, bool transposed);

}  // namespace cac::emulation

// float2, exp, fmaf and so on for Float.
struct float2 {
  cac::emulation::Float x, y;
};
inline float2 make_float2(cac::emulation::Float x, cac::emulation::Float y) { return {x, y}; }

#define CAC_FLOAT_FUNCTION_1(name, function)                               \
  inline cac::emulation::Float name(cac::emulation::Float x) {             \
    return cac::emulation::Float::result(function(static_cast<float>(x))); \
  }
#define CAC_FLOAT_FUNCTION_2(name, function)                                                      \
  inline cac::emulation::Float name(cac::emulation::Float x, cac::emulation::Float y) {           \
    return cac::emulation::Float::result(function(static_cast<float>(x), static_cast<float>(y))); \
  }
CAC_FLOAT_FUNCTION_1(sqrtf, std::sqrt)
CAC_FLOAT_FUNCTION_1(logf, std::log)
CAC_FLOAT_FUNCTION_2(fmaxf, std::fmax)
CAC_FLOAT_FUNCTION_2(fminf, std::fmin)
inline cac::emulation::Float fabsf(cac::emulation::Float x) {
  return std::fabs(static_cast<float>(x));
}
inline cac::emulation::Float fmaf(cac::emulation::Float x, cac::emulation::Float y,
                                  cac::emulation::Float z) {
  return cac::emulation::Float::result(
      std::fma(static_cast<float>(x), static_cast<float>(y), static_cast<float>(z)));
}
// Never fused with the next operation.
inline cac::emulation::Float __fmul_rn(cac::emulation::Float x, cac::emulation::Float y) {
  return x * y;
}
namespace std {  // as row_math.h calls them
CAC_FLOAT_FUNCTION_1(exp, std::exp)
CAC_FLOAT_FUNCTION_1(log, std::log)
CAC_FLOAT_FUNCTION_1(log1p, std::log1p)
}  // namespace std
#undef CAC_FLOAT_FUNCTION_1
#undef CAC_FLOAT_FUNCTION_2

inline void __syncthreads() { cac::emulation::block_barrier(); }
inline int __syncthreads_or(int predicate) { return cac::emulation::block_vote(predicate != 0); }

inline void require_full_warp(unsigned mask) {
  if (mask != 0xffffffffu) cac::emulation::fail("only whole warps are emulated");
}

inline void __syncwarp(unsigned mask = 0xffffffffu) {
  require_full_warp(mask);
  cac::emulation::collective<int, int>("__syncwarp", 0, [](const int**, int**) {});
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask) {
  require_full_warp(mask);
  struct Operand {
    T value;
    int lane_mask;
  };
  return cac::emulation::collective<Operand, T>(
      "__shfl_xor_sync", Operand{value, lane_mask}, [](const Operand** in, T** out) {
        for (int lane = 0; lane < 32; ++lane) {
          *out[lane] = in[(lane ^ in[lane]->lane_mask) & 31]->value;
        }
      });
}

template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta) {
  require_full_warp(mask);
  struct Operand {
    T value;
    unsigned delta;
  };
  return cac::emulation::collective<Operand, T>(
      "__shfl_up_sync", Operand{value, delta}, [](const Operand** in, T** out) {
        for (int lane = 0; lane < 32; ++lane) {
          const int from = lane - static_cast<int>(in[lane]->delta);
          *out[lane] = in[from < 0 ? lane : from]->value;
        }
      });
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source) {
  require_full_warp(mask);
  struct Operand {
    T value;
    int source;
  };
  return cac::emulation::collective<Operand, T>("__shfl_sync", Operand{value, source},
                                                [](const Operand** in, T** out) {
                                                  for (int lane = 0; lane < 32; ++lane)
                                                    *out[lane] = in[in[lane]->source & 31]->value;
                                                });
}

inline unsigned __ballot_sync(unsigned mask, bool predicate) {
  require_full_warp(mask);
  return cac::emulation::collective<bool, unsigned>(
      "__ballot_sync", predicate, [](const bool** in, unsigned** out) {
        unsigned votes = 0;
        for (int lane = 0; lane < 32; ++lane) votes |= static_cast<unsigned>(*in[lane]) << lane;
        for (int lane = 0; lane < 32; ++lane) *out[lane] = votes;
      });
}

inline unsigned __match_any_sync(unsigned mask, int value) {
  require_full_warp(mask);
  return cac::emulation::collective<int, unsigned>(
      "__match_any_sync", value, [](const int** in, unsigned** out) {
        for (int lane = 0; lane < 32; ++lane) {
          *out[lane] = 0;
          for (int other = 0; other < 32; ++other) {
            *out[lane] |= static_cast<unsigned>(*in[other] == *in[lane]) << other;
          }
        }
      });
}

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __ffs(unsigned bits) { return __builtin_ffs(static_cast<int>(bits)); }

namespace cac::device {

using emulation::Float;

constexpr unsigned kFullWarp = 0xffffffffu;
#if !defined(CAC_EMULATED_ARCHITECTURE)
#define CAC_EMULATED_ARCHITECTURE 800
#endif
constexpr int kArchitecture = CAC_EMULATED_ARCHITECTURE;

// Offset from the beginning of the block's shared memory.
using SharedAddress = uint32_t;

inline char* dynamic_shared_memory() { return emulation::shared_memory(); }
inline SharedAddress shared_address(const void* pointer) {
  return static_cast<SharedAddress>(static_cast<const char*>(pointer) - emulation::shared_memory());
}
inline char* shared_pointer(SharedAddress address) { return emulation::shared_memory() + address; }

inline uint32_t load_shared(SharedAddress address) {
  uint32_t value;
  std::memcpy(&value, shared_pointer(address), sizeof(value));
  return value;
}

template <class T>
T load_global(const T* pointer) {
  return *pointer;
}

inline void load_matrices(uint32_t (&matrices)[4], SharedAddress row) {
  emulation::load_matrices(matrices, shared_pointer(row), false);
}
inline void load_matrices_transposed(uint32_t (&matrices)[4], SharedAddress row) {
  emulation::load_matrices(matrices, shared_pointer(row), true);
}

inline void copy_async_16(SharedAddress destination, const void* source, bool valid) {
  emulation::issue_copy(shared_pointer(destination), source, valid);
}
inline void commit_copies() { emulation::commit_copies(); }
template <int kInFlight>
void wait_for_copies() {
  emulation::wait_for_copies(kInFlight);
}

inline void multiply_bf16(Float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  emulation::matrix_product(emulation::Format::kBFloat16, d, a, b0, b1);
}
inline void multiply_f16(Float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  emulation::matrix_product(emulation::Format::kFloat16, d, a, b0, b1);
}
inline void multiply_tf32(Float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  emulation::matrix_product(emulation::Format::kTensorFloat32, d, a, b0, b1);
}

// ex2.approx.ftz flushes subnormal results; its error of 2 ulp is not imitated.
inline Float exp2_approx(Float x) {
  const float result = std::exp2(static_cast<float>(x));
  return result < 1.17549435e-38f ? Float(0) : Float::result(result);
}

inline uint32_t float_bits(Float x) { return emulation::bit_cast<uint32_t>(x); }
inline Float bits_float(uint32_t bits) { return emulation::bit_cast<Float>(bits); }

inline uint16_t float_to_f16(Float x) {
  if (x != x) return 0x7fff;
  return emulation::bit_cast<uint16_t>(static_cast<_Float16>(static_cast<float>(x)));
}
inline Float f16_to_float(uint16_t bits) {
  return Float::result(static_cast<float>(emulation::bit_cast<_Float16>(bits)));
}
inline uint16_t float_to_bf16_nearest(Float x) {
  const uint32_t bits = float_bits(x);
  if (x != x) return 0x7fff;
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
inline uint32_t pack_f16(Float low, Float high) {
  return float_to_f16(low) | static_cast<uint32_t>(float_to_f16(high)) << 16;
}
inline uint32_t pack_bf16(Float low, Float high) {
  return float_to_bf16_nearest(low) | static_cast<uint32_t>(float_to_bf16_nearest(high)) << 16;
}

inline void trap() { emulation::fail("trap"); }

// 64 KiB on sm_75; otherwise the 99 KiB of sm_86, the minimum from sm_80 on.
inline int max_shared_bytes() {
  const int given = emulation::settings.shared_kib;
  return (given > 0 ? given : kArchitecture < 800 ? 64 : 99) << 10;
}

// The architecture of the calling code: kernels and host code must be compiled for the same one.
template <class Kernel>
int code_architecture(Kernel*) {
  return kArchitecture / 10;
}

inline int multiprocessor_count() { return emulation::settings.multiprocessors; }
template <class Kernel>
int resident_blocks(Kernel*, int, int) {
  return emulation::settings.resident_blocks;
}

template <class Params>
void launch(void (*kernel)(Params), int64_t blocks, int threads, int shared_bytes, cudaStream_t,
            const Params& params) {
  if (shared_bytes > max_shared_bytes())
    emulation::fail("the launch needs more shared memory than the device has");
  struct Launch {
    void (*kernel)(Params);
    const Params& params;
  };
  const Launch this_one{kernel, params};
  emulation::run_grid(
      blocks, threads, shared_bytes,
      [](const void* launch) {
        static_cast<const Launch*>(launch)->kernel(static_cast<const Launch*>(launch)->params);
      },
      &this_one);
}

void mark_gap(void* begin, size_t bytes);

}  // namespace cac::device

#if !defined(CAC_EMULATION_HOST)
#define float ::cac::emulation::Float
#endif
