#define CAC_EMULATION_HOST
#include "device_emulation.h"

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

// Saves the state of one fiber and resumes another. swapcontext does the same, but its system call
// for the signal mask would take most of a run's time.
#if defined(__x86_64__)
extern "C" void cac_switch_stack(void** from, void* to);
asm(R"(
.text
.globl cac_switch_stack
.type cac_switch_stack, @function
cac_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size cac_switch_stack, . - cac_switch_stack
)");
#endif

namespace cac::emulation {

Settings settings;
int64_t launches = 0;

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
#if defined(__x86_64__)
  void* context = nullptr;
#else
  ucontext_t context;
#endif
  void* stack = nullptr;
  size_t stack_bytes = 0;
  void* sanitizer_stack = nullptr;
  State state = State::kReady;
  std::vector<Copy> copies;    // unfinished
  std::vector<size_t> groups;  // number of copies in each committed group, the oldest first
  size_t uncommitted = 0;
};

struct Warp {
  const char* name = nullptr;  // of the collective at which lanes wait
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
  bool vote = false;       // of the threads at the barrier so far
  bool last_vote = false;  // of the last complete barrier
  char* shared = nullptr;
  void (*body)(const void* params) = nullptr;
  const void* params = nullptr;
};

Block block;
Fiber host;
int current = -1;  // the running thread; -1: the host
std::vector<std::unique_ptr<char[]>> stacks;

void prepare_context(Fiber& fiber, void (*entry)()) {
#if defined(__x86_64__)
  // As cac_switch_stack leaves a stack: six registers and the return address.
  auto* top = reinterpret_cast<void**>(
      (reinterpret_cast<uintptr_t>(fiber.stack) + fiber.stack_bytes) / 16 * 16);
  clear_gaps(top - 512, 512 * sizeof(void*));  // left by the frames of a finished thread
  std::fill(top - 8, top, nullptr);
  top[-2] = reinterpret_cast<void*>(entry);
  fiber.context = top - 8;
#else
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack;
  fiber.context.uc_stack.ss_size = fiber.stack_bytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, entry, 0);
#endif
}

void finish_switch(Fiber& arrived, bool first_time) {
#if defined(__SANITIZE_ADDRESS__)
  const void* old_stack = nullptr;
  size_t old_bytes = 0;
  __sanitizer_finish_switch_fiber(first_time ? nullptr : arrived.sanitizer_stack, &old_stack,
                                  &old_bytes);
  // The first switch away from the host's stack reports where that stack is.
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
#if defined(__x86_64__)
  cac_switch_stack(&from.context, to.context);
#else
  swapcontext(&from.context, &to.context);
#endif
  finish_switch(from, false);
}

// The next thread that can run: one of this thread's warp if `same_warp_first`, else one of the
// first warp in order; -1 if no thread can.
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
    if (!done)
      fail(
          "deadlock: some threads of the block never reach the barrier or collective that others "
          "wait for");
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
  block.body(block.params);
  block.fibers[current].state = State::kDone;
  run_another();
  fail("a finished thread was resumed");
}

std::vector<int64_t> order_of(int64_t count, uint64_t execution_order) {
  std::vector<int64_t> result(count);
  std::iota(result.begin(), result.end(), 0);
  if (execution_order == 1) std::reverse(result.begin(), result.end());
  if (execution_order > 1) {
    std::shuffle(result.begin(), result.end(), std::mt19937_64(execution_order));
  }
  return result;
}

void run_block(unsigned index, int shared_bytes) {
  // Exactly the requested bytes, so that AddressSanitizer sees an access to the first one beyond.
  void* shared = nullptr;
  if (posix_memalign(&shared, 128, std::max(shared_bytes, 1)) != 0) fail("out of memory");
  std::memset(shared, 0xff, shared_bytes);
  block.shared = static_cast<char*>(shared);
  block.index = index;
  block.at_barrier = 0;
  block.vote = false;
  block.fibers.resize(block.threads);
  block.warps.assign(block.threads / 32, Warp{});
  for (int thread = 0; thread < block.threads; ++thread) {
    // One allocation for the stacks of a warp, because every large one is a system call.
    if (static_cast<int>(stacks.size()) <= thread / 32) {
      stacks.emplace_back(new char[32 * kStackBytes]);
    }
    Fiber& fiber = block.fibers[thread];
    fiber.stack = stacks[thread / 32].get() + thread % 32 * kStackBytes;
    fiber.stack_bytes = kStackBytes;
    fiber.sanitizer_stack = nullptr;
    fiber.state = State::kReady;
    fiber.copies.clear();
    fiber.groups.clear();
    fiber.uncommitted = 0;
    prepare_context(fiber, thread_main);
  }
  current = block.warp_order[0] * 32;
  switch_fiber(host, block.fibers[current]);
  std::free(shared);
  block.shared = nullptr;
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

void run_grid(int64_t blocks, int threads, int shared_bytes, void (*body)(const void* params),
              const void* params) {
  if (threads <= 0 || threads > 1024 || threads % 32 != 0) fail("bad number of threads");
  if (blocks <= 0 || blocks > 2147483647) fail("bad number of blocks");
  ++launches;
  block.threads = threads;
  block.grid = static_cast<unsigned>(blocks);
  block.body = body;
  block.params = params;
  block.warp_order.clear();
  for (int64_t warp : order_of(threads / 32, settings.execution_order)) {
    block.warp_order.push_back(static_cast<int>(warp));
  }
  for (int64_t index : order_of(blocks, settings.execution_order)) {
    run_block(static_cast<unsigned>(index), shared_bytes);
  }
}

void warp_collective(const char* name, const void* operand, void* result,
                     void (*combine)(Lanes& lanes)) {
  Warp& warp = block.warps[current / 32];
  if (warp.arrived > 0 && warp.name != name && std::strcmp(warp.name, name) != 0) {
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
  block.last_vote = std::exchange(block.vote, false);
  for (Fiber& fiber : block.fibers) fiber.state = State::kReady;
  run_another(false);
}

bool block_vote(bool predicate) {
  block.vote = block.vote || predicate;
  block_barrier();
  // The next barrier cannot complete before this thread reaches it.
  return block.last_vote;
}

void issue_copy(char* destination, const void* source, bool valid) {
  if (reinterpret_cast<uintptr_t>(destination) % 16 != 0) fail("cp.async: misaligned destination");
  if (valid && reinterpret_cast<uintptr_t>(source) % 16 != 0) fail("cp.async: misaligned source");
  std::memset(destination, 0xff, 16);
  block.fibers[current].copies.push_back({destination, source, valid});
  ++block.fibers[current].uncommitted;
}

void commit_copies() {
  Fiber& fiber = block.fibers[current];
  fiber.groups.push_back(std::exchange(fiber.uncommitted, 0));
}

void wait_for_copies(int in_flight) {
  Fiber& fiber = block.fibers[current];
  while (static_cast<int>(fiber.groups.size()) > in_flight) {
    const auto begin = fiber.copies.begin();
    const auto end = begin + static_cast<ptrdiff_t>(fiber.groups.front());
    for (auto copy = begin; copy != end; ++copy) {
      if (copy->valid) {
        std::memcpy(copy->destination, copy->source, 16);
      } else {
        std::memset(copy->destination, 0, 16);
      }
    }
    fiber.copies.erase(begin, end);
    fiber.groups.erase(fiber.groups.begin());
  }
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
