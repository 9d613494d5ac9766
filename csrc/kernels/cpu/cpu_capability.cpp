#include "kernels/cpu/cpu_capability.h"

#include <stdexcept>

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace cac::cpu {
namespace {

struct Capability {
  const char* name;
  bool supported;
  const TileKernel* (*find)(Arithmetic);
  const PeakLoop* (*find_peak)(DType);
};

#if defined(CAC_X86_KERNELS)
bool has_amx() {
#if defined(__linux__)
  unsigned eax, ebx, ecx, edx;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
  constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24;
  if ((edx & kAmxBf16) == 0 || (edx & kAmxTile) == 0) return false;
  // Linux hands the tile registers only to processes that ask for them.
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

const std::vector<Capability>& capabilities() {
  static const std::vector<Capability> all = [] {
    std::vector<Capability> found = {{"portable", true, portable_kernel, portable_peak}};
#if defined(CAC_X86_KERNELS)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                        __builtin_cpu_supports("avx512dq");
    const bool avx512_bf16 = avx512 && __builtin_cpu_supports("avx512bf16");
    found.push_back({"avx2", avx2, avx2_kernel, avx2_peak});
    found.push_back({"avx512", avx512, avx512_kernel, avx512_peak});
    found.push_back({"avx512_bf16", avx512_bf16, avx512_bf16_kernel, avx512_bf16_peak});
    found.push_back({"amx", avx512_bf16 && has_amx(), amx_kernel, amx_peak});
#endif
    std::vector<Capability> supported;
    for (const Capability& capability : found) {
      if (capability.supported) supported.push_back(capability);
    }
    return supported;
  }();
  return all;
}

size_t& limit() {
  static size_t index = capabilities().size() - 1;
  return index;
}

// The place of a set among capabilities().
size_t index_of(const std::string& name) {
  const std::vector<Capability>& all = capabilities();
  std::string names;
  for (size_t i = 0; i < all.size(); ++i) {
    if (name == all[i].name) return i;
    names += std::string(i ? ", " : "") + all[i].name;
  }
  throw std::invalid_argument("capability must be one of " + names + ", but got '" + name + "'");
}

}  // namespace

std::vector<std::string> cpu_capabilities() {
  std::vector<std::string> names;
  for (const Capability& capability : capabilities()) names.emplace_back(capability.name);
  return names;
}

void limit_cpu_capability(const std::string& name) { limit() = index_of(name); }

std::string cpu_capability() { return capabilities()[limit()].name; }

const TileKernel* find_tile_kernel(Arithmetic arithmetic) {
  for (size_t i = limit() + 1; i-- > 0;) {
    if (const TileKernel* kernel = capabilities()[i].find(arithmetic)) return kernel;
  }
  return nullptr;
}

std::vector<std::string> peak_capabilities(DType type) {
  std::vector<std::string> names;
  for (const Capability& capability : capabilities()) {
    if (capability.find_peak(type) != nullptr) names.emplace_back(capability.name);
  }
  return names;
}

const PeakLoop* find_peak_loop(DType type, const std::string& name) {
  for (size_t i = index_of(name) + 1; i-- > 0;) {
    if (const PeakLoop* loop = capabilities()[i].find_peak(type)) return loop;
  }
  return nullptr;
}

}  // namespace cac::cpu
