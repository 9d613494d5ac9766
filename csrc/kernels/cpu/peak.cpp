#include "kernels/cpu/peak.h"

#include <algorithm>
#include <barrier>
#include <chrono>
#include <thread>
#include <vector>

namespace cac::cpu {
namespace {

using Clock = std::chrono::steady_clock;
using Seconds = std::chrono::duration<double>;

// So short that other programs leave some runs undisturbed, so long that the start of the threads
// does not matter.
constexpr double kRunSeconds = 0.002;
constexpr int kRuns = 20;

// Repetitions that take about `kRunSeconds`. Finding them also wakes the vector units up.
int64_t find_repetitions(const PeakLoop& loop) {
  int64_t repetitions = 1024;
  while (true) {
    const Clock::time_point start = Clock::now();
    loop.run(repetitions, 0.5);
    if (Seconds(Clock::now() - start).count() >= kRunSeconds) return repetitions;
    repetitions *= 2;
  }
}

struct Run {
  Clock::time_point start, end;
};

}  // namespace

double measure_peak(const PeakLoop& loop, int threads) {
  const int64_t repetitions = find_repetitions(loop);
  std::vector<Run> runs(static_cast<size_t>(kRuns) * threads);  // [runs][threads]
  std::barrier<> together(threads);
  const auto work = [&](int thread) {
    for (int i = 0; i < kRuns; ++i) {
      Run& run = runs[static_cast<size_t>(i) * threads + thread];
      together.arrive_and_wait();
      run.start = Clock::now();
      loop.run(repetitions, 0.5);
      run.end = Clock::now();
    }
  };
  std::vector<std::thread> others;
  for (int thread = 1; thread < threads; ++thread) others.emplace_back(work, thread);
  work(0);
  for (std::thread& other : others) other.join();
  double best = 0.0;
  for (auto run = runs.begin(); run != runs.end(); run += threads) {
    Run whole = *run;
    for (auto own = run; own != run + threads; ++own) {
      whole.start = std::min(whole.start, own->start);
      whole.end = std::max(whole.end, own->end);
    }
    const double seconds = Seconds(whole.end - whole.start).count();
    best = std::max(best, threads * loop.operations * repetitions / seconds);
  }
  return best;
}

}  // namespace cac::cpu
