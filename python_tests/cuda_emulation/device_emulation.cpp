#include "device_emulation.h"

#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <deque>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace cac::emulation {

Settings settings;
int64_t matrix_products = 0;

namespace {

constexpr size_t kStackBytes = 128 * 1024;

struct Copy {
  char* destination;
  const void* source;
  bool valid;
};

enum class State { kReady, kAtWarpCollective, kAtBarrier, kDone };

// One thread of the block, or the host thread that launched it.
struct Fiber {
  ucontext_t context;
  void* stack = nullptr;
  size_t stack_bytes = 0;
  void* sanitizer_stack = nullptr;
  State state = State::kReady;
  std::vector<Copy> uncommitted;
  std::deque<std::vector<Copy>> groups;
};

struct Warp {
  const char* name = nullptr;  // of the collective that is gathering
  int arrived = 0;
  Lanes lanes;
};

struct Block {
  int threads = 0;
  unsigned index = 0;
  unsigned grid = 0;
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  std::vector<int> warp_order;
  int at_barrier = 0;
  char* shared = nullptr;
  const std::function<void()>* body = nullptr;
};

Block block;
Fiber host;
int current = -1;  // thread that runs; -1: the host
std::vector<std::unique_ptr<char[]>> stacks;

void finish_switch(Fiber& arrived, bool first_time) {
#if defined(__SANITIZE_ADDRESS__)
  const void* old_stack = nullptr;
  size_t old_bytes = 0;
  __sanitizer_finish_switch_fiber(first_time ? nullptr : arrived.sanitizer_stack, &old_stack,
                                  &old_bytes);
  // Whoever is first to leave the host's stack tells where that stack is.
  if (host.stack == nullptr) {
    host.stack = const_cast<void*>(old_stack);
    host.stack_bytes = old_bytes;
  }
#else
  (void)arrived;
  (void)first_time;
#endif
}

void switch_fiber(Fiber& from, Fiber& to) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(from.state == State::kDone ? nullptr : &from.sanitizer_stack,
                                 to.stack, to.stack_bytes);
#endif
  swapcontext(&from.context, &to.context);
  finish_switch(from, false);
}

// The next thread that can run: of this thread's warp if wanted and any, else of the first warp in
// order.
int next_ready(bool same_warp_first) {
  const int warp = current / 32;
  for (int step = 1; same_warp_first && step <= 32; ++step) {
    const int thread = warp * 32 + (current + step) % 32;
    if (block.fibers[thread].state == State::kReady) return thread;
  }
  for (int other : block.warp_order) {
    for (int thread = other * 32; thread < other * 32 + 32; ++thread) {
      if (block.fibers[thread].state == State::kReady) return thread;
    }
  }
  return -1;
}

void run_another(bool same_warp_first = true) {
  Fiber& from = block.fibers[current];
  const int next = next_ready(same_warp_first);
  if (next < 0) {
    const bool done = std::all_of(block.fibers.begin(), block.fibers.end(),
                                  [](const Fiber& f) { return f.state == State::kDone; });
    if (!done) fail("deadlock: some threads of the block never reach what the others wait for");
    current = -1;
    switch_fiber(from, host);
    return;
  }
  const int self = current;
  current = next;
  if (next != self) switch_fiber(from, block.fibers[next]);
  current = self;
}

void thread_main() {
  finish_switch(block.fibers[current], true);
  (*block.body)();
  block.fibers[current].state = State::kDone;
  run_another();
  fail("a finished thread was resumed");
}

std::vector<int64_t> order(int64_t count, uint64_t schedule) {
  std::vector<int64_t> result(count);
  std::iota(result.begin(), result.end(), 0);
  if (schedule == 1) std::reverse(result.begin(), result.end());
  if (schedule > 1) std::shuffle(result.begin(), result.end(), std::mt19937_64(schedule));
  return result;
}

void run_block(unsigned index, int shared_bytes) {
  // No byte more than asked for, so that AddressSanitizer sees the first one beyond.
  void* shared = nullptr;
  if (posix_memalign(&shared, 128, std::max(shared_bytes, 1)) != 0) fail("out of memory");
  std::memset(shared, 0xff, shared_bytes);
  block.shared = static_cast<char*>(shared);
  block.index = index;
  block.at_barrier = 0;
  block.fibers = std::vector<Fiber>(block.threads);
  block.warps = std::vector<Warp>(block.threads / 32);
  for (int thread = 0; thread < block.threads; ++thread) {
    if (static_cast<int>(stacks.size()) <= thread) stacks.emplace_back(new char[kStackBytes]);
    Fiber& fiber = block.fibers[thread];
    fiber.stack = stacks[thread].get();
    fiber.stack_bytes = kStackBytes;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack;
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, thread_main, 0);
  }
  current = block.warp_order[0] * 32;
  switch_fiber(host, block.fibers[current]);
  std::free(shared);
  block.shared = nullptr;
}

double element(Format format, const uint32_t* fragment, int index) {
  switch (format) {
    case Format::kBFloat16:
      return device::bits_float((fragment[index / 2] >> (16 * (index % 2))) << 16);
    case Format::kFloat16:
      return device::f16_to_float(static_cast<uint16_t>(fragment[index / 2] >> (16 * (index % 2))));
    case Format::kTensorFloat32:
      return device::bits_float(fragment[index] & 0xffffe000u);
  }
  return 0;
}

// Tensor cores cut the sum off towards zero where IEEE addition rounds to nearest.
float round_towards_zero(double x) {
  float y = static_cast<float>(x);
  if (std::fabs(static_cast<double>(y)) > std::fabs(x)) y = std::nextafter(y, 0.0f);
  return y;
}

}  // namespace

Index thread_index() { return {static_cast<unsigned>(current)}; }
Index block_index() { return {block.index}; }
Index block_size() { return {static_cast<unsigned>(block.threads)}; }
Index grid_size() { return {block.grid}; }
char* shared_memory() { return block.shared; }

void fail(const std::string& what) {
  std::fprintf(stderr, "device emulation: block %u, thread %d: %s\n", block.index, current,
               what.c_str());
  std::fflush(stderr);
  std::_Exit(3);
}

void clear_gaps(void* begin, size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(begin, bytes);
#else
  (void)begin;
  (void)bytes;
#endif
}

void run_grid(int64_t blocks, int threads, int shared_bytes, const std::function<void()>& body) {
  if (threads <= 0 || threads > 1024 || threads % 32 != 0) fail("bad number of threads");
  if (blocks <= 0 || blocks > 2147483647) fail("bad number of blocks");
  block.threads = threads;
  block.grid = static_cast<unsigned>(blocks);
  block.body = &body;
  block.warp_order.clear();
  for (int64_t warp : order(threads / 32, settings.schedule)) {
    block.warp_order.push_back(static_cast<int>(warp));
  }
  for (int64_t index : order(blocks, settings.schedule)) {
    run_block(static_cast<unsigned>(index), shared_bytes);
  }
}

void warp_collective(const char* name, const void* operand, void* result,
                     void (*combine)(Lanes& lanes)) {
  Warp& warp = block.warps[current / 32];
  if (warp.arrived > 0 && std::strcmp(warp.name, name) != 0) {
    fail(std::string("lanes of one warp are at ") + warp.name + " and at " + name);
  }
  warp.name = name;
  warp.lanes.operands[current % 32] = operand;
  warp.lanes.results[current % 32] = result;
  if (++warp.arrived < 32) {
    block.fibers[current].state = State::kAtWarpCollective;
    run_another();
    return;
  }
  combine(warp.lanes);
  warp.arrived = 0;
  const int first = current / 32 * 32;
  for (int thread = first; thread < first + 32; ++thread) {
    block.fibers[thread].state = State::kReady;
  }
}

void block_barrier() {
  if (block.warps[current / 32].arrived > 0) {
    fail(std::string("lanes of one warp are at __syncthreads and at ") +
         block.warps[current / 32].name);
  }
  if (++block.at_barrier < block.threads) {
    block.fibers[current].state = State::kAtBarrier;
    run_another();
    return;
  }
  block.at_barrier = 0;
  for (Fiber& fiber : block.fibers) fiber.state = State::kReady;
  run_another(false);
}

void issue_copy(char* destination, const void* source, bool valid) {
  if (reinterpret_cast<uintptr_t>(destination) % 16 != 0) fail("cp.async: misaligned destination");
  if (valid && reinterpret_cast<uintptr_t>(source) % 16 != 0) fail("cp.async: misaligned source");
  std::memset(destination, 0xff, 16);
  block.fibers[current].uncommitted.push_back({destination, source, valid});
}

void commit_copies() {
  Fiber& fiber = block.fibers[current];
  fiber.groups.push_back(std::move(fiber.uncommitted));
  fiber.uncommitted.clear();
}

void wait_for_copies(int in_flight) {
  Fiber& fiber = block.fibers[current];
  while (static_cast<int>(fiber.groups.size()) > in_flight) {
    for (const Copy& copy : fiber.groups.front()) {
      if (copy.valid) {
        std::memcpy(copy.destination, copy.source, 16);
      } else {
        std::memset(copy.destination, 0, 16);
      }
    }
    fiber.groups.pop_front();
  }
}

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

void matrix_product(Format format, float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                    uint32_t b1) {
  struct Operand {
    Format format;
    const float* d;
    const uint32_t* a;
    uint32_t b[2];
  };
  struct Result {
    float d[4];
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
        for (int lane = 0; lane < 32; ++lane) {
          for (int i = 0; i < 4; ++i) {
            const int row = lane / 4 + i / 2 * 8;
            const int column = lane % 4 * 2 + i % 2;
            double sum = in[lane]->d[i];
            for (int k = 0; k < depth; ++k) sum += a[row][k] * b[k][column];
            out[lane]->d[i] = round_towards_zero(sum);
          }
        }
        ++matrix_products;
      });
  std::copy(result.d, result.d + 4, d);
}

}  // namespace cac::emulation

namespace cac::device {

void mark_gap(void* begin, size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
  __asan_poison_memory_region(begin, bytes);
#else
  (void)begin;
  (void)bytes;
#endif
}

}  // namespace cac::device
