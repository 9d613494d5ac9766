#include "kernels/cpu/schedule.h"

#include <algorithm>
#include <limits>

namespace cac::cpu {
namespace {

class ScheduleBuilder {
 public:
  ScheduleBuilder(const ContrastiveProblem& problem, int tile_slots)
      : problem_(problem), tile_slots_(tile_slots) {}

  void add_tile(const int64_t* anchors, int64_t count) {
    TileSpan span{0, std::numeric_limits<int32_t>::max(), std::numeric_limits<int32_t>::max(), 0};
    for (int slot = 0; slot < tile_slots_; ++slot) {
      const int64_t anchor = anchors[std::min<int64_t>(slot, count - 1)];
      const auto begin = static_cast<int32_t>(problem_.same_class_begin[anchor]);
      const auto end = static_cast<int32_t>(problem_.same_class_end[anchor]);
      schedule_.anchors.push_back(slot < count ? anchor : -1);
      schedule_.interval_begin.push_back(begin);
      schedule_.interval_end.push_back(end);
      span.skip_begin = std::max(span.skip_begin, begin);
      span.skip_end = std::min(span.skip_end, end);
      if (begin == end) continue;
      span.hull_begin = std::min(span.hull_begin, begin);
      span.hull_end = std::max(span.hull_end, end);
    }
    schedule_.spans.push_back(span);
    ++schedule_.num_tiles;
  }

  Schedule take() { return std::move(schedule_); }

 private:
  const ContrastiveProblem& problem_;
  const int tile_slots_;
  Schedule schedule_;
};

}  // namespace

Schedule make_schedule(const ContrastiveProblem& problem, int tile_slots) {
  const int64_t* begin = problem.same_class_begin;
  const int64_t* end = problem.same_class_end;
  std::vector<int64_t> active;
  for (int64_t i = 0; i < problem.num_anchors; ++i) {
    if (problem.direction[i] != kInactive) active.push_back(i);
  }
  std::stable_sort(active.begin(), active.end(), [&](int64_t i, int64_t j) {
    return begin[i] != begin[j] ? begin[i] < begin[j] : end[i] < end[j];
  });

  ScheduleBuilder builder(problem, tile_slots);
  std::vector<int64_t> mixed;
  for (size_t first = 0; first < active.size();) {
    size_t last = first;
    while (last < active.size() && begin[active[last]] == begin[active[first]] &&
           end[active[last]] == end[active[first]]) {
      ++last;
    }
    const int64_t same_class = end[active[first]] - begin[active[first]];
    for (; first + tile_slots <= last; first += tile_slots)
      builder.add_tile(&active[first], tile_slots);
    const auto rest = static_cast<int64_t>(last - first);
    if (rest > 0 &&
        tile_slots * (problem.num_negatives - same_class) <= rest * problem.num_negatives) {
      builder.add_tile(&active[first], rest);
    } else {
      mixed.insert(mixed.end(), active.begin() + first, active.begin() + last);
    }
    first = last;
  }
  for (size_t first = 0; first < mixed.size(); first += tile_slots) {
    builder.add_tile(&mixed[first], std::min<int64_t>(tile_slots, mixed.size() - first));
  }
  return builder.take();
}

}  // namespace cac::cpu
