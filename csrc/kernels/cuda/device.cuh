// The device instructions of the kernels, each behind one small function, so that the same .cu
// sources also run without a GPU: with CAC_DEVICE_EMULATION they call the emulation's functions of
// the same names (python_tests/cuda_emulation) instead of the ones below.
#pragma once

#if defined(CAC_DEVICE_EMULATION)
#include "device_emulation.h"
#else

#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

namespace cac::device {

constexpr unsigned kFullWarp = 0xffffffffu;

// Architecture that this pass compiles for (800 is sm_80); 0 on the host.
#if defined(__CUDA_ARCH__)
constexpr int kArchitecture = __CUDA_ARCH__;
#else
constexpr int kArchitecture = 0;
#endif

// --- Shared memory ----------------------------------------------------------------------------

using SharedAddress = uint32_t;

__device__ __forceinline__ char* dynamic_shared_memory() {
  extern __shared__ __align__(128) char cac_dynamic_shared_memory[];
  return cac_dynamic_shared_memory;
}

__device__ __forceinline__ SharedAddress shared_address(const void* pointer) {
  return static_cast<SharedAddress>(__cvta_generic_to_shared(pointer));
}

__device__ __forceinline__ uint32_t load_shared(SharedAddress address) {
  uint32_t value;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(value) : "r"(address) : "memory");
  return value;
}

// Four 8 x 8 matrices of 16-bit elements. Lane i gives the address of row i % 8 of matrix i / 8 and
// receives the elements 2 * (i % 4) + {0, 1} of row i / 4 of every matrix.
__device__ __forceinline__ void load_matrices(uint32_t (&matrices)[4], SharedAddress row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
               : "r"(row)
               : "memory");
}

// The same with every matrix transposed.
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&matrices)[4],
                                                         SharedAddress row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
               : "r"(row)
               : "memory");
}

// --- Global memory ----------------------------------------------------------------------------

// For memory that no thread writes while the kernel runs. Says that the address is in global
// memory, which the compiler cannot know of an address that came by a shuffle.
template <class T>
__device__ __forceinline__ T load_global(const T* pointer) {
  return __ldg(pointer);
}

// --- Asynchronous copies ----------------------------------------------------------------------

// Copies 16 bytes, or writes 16 zero bytes if not `valid` (`source` is then not read). This thread
// sees the bytes after wait_for_copies, the block after a further barrier.
__device__ __forceinline__ void copy_async_16(SharedAddress destination, const void* source,
                                              bool valid) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(destination), "l"(source),
               "r"(valid ? 16 : 0)
               : "memory");
#else
  uint4 value = make_uint4(0, 0, 0, 0);
  if (valid) value = __ldg(static_cast<const uint4*>(source));
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(destination), "r"(value.x),
               "r"(value.y), "r"(value.z), "r"(value.w)
               : "memory");
#endif
}

__device__ __forceinline__ void commit_copies() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most `kInFlight` of the committed groups are unfinished.
template <int kInFlight>
__device__ __forceinline__ void wait_for_copies() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kInFlight) : "memory");
#endif
}

// --- Matrix products, d += a b; fragments as in the PTX manual --------------------------------

__device__ __forceinline__ void multiply_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                              uint32_t b1) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

__device__ __forceinline__ void multiply_f16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                             uint32_t b1) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
  // Turing multiplies 8 channels at a time: first one half of the fragments, then the other.
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(b0));
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[2]), "r"(a[3]), "r"(b1));
#endif
}

// m16n8k8; the 13 lowest bits of every float32 operand are ignored.
__device__ __forceinline__ void multiply_tf32(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                              uint32_t b1) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

// --- Scalars ----------------------------------------------------------------------------------

__device__ __forceinline__ float exp2_approx(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

__device__ __forceinline__ uint32_t float_bits(float x) { return __float_as_uint(x); }
__device__ __forceinline__ float bits_float(uint32_t bits) { return __uint_as_float(bits); }

__device__ __forceinline__ uint16_t float_to_f16(float x) {
  uint16_t half;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(x));
  return half;
}

__device__ __forceinline__ float f16_to_float(uint16_t half) {
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(half));
  return x;
}

// Two values rounded to 16 bits, `low` in the low half.
__device__ __forceinline__ uint32_t pack_f16(float low, float high) {
  uint32_t packed = 0;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
#else
  packed = float_to_f16(low) | static_cast<uint32_t>(float_to_f16(high)) << 16;
#endif
  return packed;
}

__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
  uint32_t packed = 0;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
#endif
  return packed;
}

// Ends the whole grid with an error.
__device__ __forceinline__ void trap() { __trap(); }

// --- Launches (host) --------------------------------------------------------------------------

inline void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) {
    cudaGetLastError();  // clears the error, or the next caller would get it again
    std::string advice;
    if (error == cudaErrorNoKernelImageForDevice) {
      advice =
          "; cac_ext.build_info() lists the architectures that cac_ext was built for; to build it "
          "for others, set TORCH_CUDA_ARCH_LIST";
    }
    throw std::runtime_error(std::string("cac_ext: ") + what + ": " + cudaGetErrorString(error) +
                             advice);
  }
}

// Of the current device.
inline int device_attribute(cudaDeviceAttr attribute, const char* what) {
  int device = 0;
  int value = 0;
  check(cudaGetDevice(&device), "no current CUDA device");
  check(cudaDeviceGetAttribute(&value, attribute, device), what);
  return value;
}

inline int multiprocessor_count() {
  return device_attribute(cudaDevAttrMultiProcessorCount,
                          "cannot read the number of multiprocessors");
}

// Bytes of shared memory available to a block.
inline int max_shared_bytes() {
  return device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin,
                          "cannot read the size of the shared memory");
}

// Architecture (80 for sm_80) that the code of `kernel` for the current device was compiled for. It
// is older than the device if that runs the PTX of an older architecture.
template <class Kernel>
int code_architecture(Kernel* kernel) {
  cudaFuncAttributes attributes;
  check(cudaFuncGetAttributes(&attributes, kernel), "cannot load a kernel on this GPU");
  return attributes.ptxVersion;
}

// Blocks of `kernel` that one multiprocessor runs at a time.
template <class Kernel>
int resident_blocks(Kernel* kernel, int threads, int shared_bytes) {
  int blocks = 0;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes),
        "cannot set up a kernel on this GPU");
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, shared_bytes),
        "cannot read the kernel's occupancy");
  return blocks;
}

template <class Params>
void launch(void (*kernel)(Params), int64_t blocks, int threads, int shared_bytes,
            cudaStream_t stream, const Params& params) {
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes),
        "cannot set up a kernel on this GPU");
  void* arguments[] = {const_cast<Params*>(&params)};
  check(cudaLaunchKernel(reinterpret_cast<const void*>(kernel), dim3(static_cast<unsigned>(blocks)),
                         dim3(static_cast<unsigned>(threads)), arguments,
                         static_cast<size_t>(shared_bytes), stream),
        "kernel launch failed");
}

// Marks the bytes between two arrays of one allocation; in the emulation touching them is an error.
inline void mark_gap(void*, size_t) {}

}  // namespace cac::device

#endif
