#include "kernels/cpu/schedule.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "kernels/row_math.h"

namespace cac::cpu {
namespace {

class ScheduleBuilder {
 public:
  ScheduleBuilder(const ContrastiveProblem& problem, int tile_slots, int unit_negatives)
      : problem_(problem), tile_slots_(tile_slots) {
    if (problem.excluded == nullptr || problem.column_ids == nullptr) return;
    schedule_.column_ids.assign(problem.num_negatives + unit_negatives, -1);
    std::copy_n(problem.column_ids, problem.num_negatives, schedule_.column_ids.begin());
  }

  void add_tile(const int64_t* anchors, int64_t count) {
    constexpr int32_t kLargest = std::numeric_limits<int32_t>::max();
    TileSpan span{0, kLargest, kLargest, 0, kLargest, 0};
    for (int slot = 0; slot < tile_slots_; ++slot) {
      const int64_t anchor = anchors[std::min<int64_t>(slot, count - 1)];
      const auto begin = static_cast<int32_t>(problem_.same_class_begin[anchor]);
      const auto end = static_cast<int32_t>(problem_.same_class_end[anchor]);
      schedule_.anchors.push_back(slot < count ? anchor : -1);
      schedule_.interval_begin.push_back(begin);
      schedule_.interval_end.push_back(end);
      span.common_begin = std::max(span.common_begin, begin);
      span.common_end = std::min(span.common_end, end);
      if (problem_.excluded != nullptr) {
        schedule_.excluded.push_back(static_cast<int32_t>(problem_.excluded[anchor]));
        const Columns columns = excluded_columns(problem_, anchor);
        if (columns.begin < columns.end) {
          span.excluded_begin = std::min(span.excluded_begin, static_cast<int32_t>(columns.begin));
          span.excluded_end = std::max(span.excluded_end, static_cast<int32_t>(columns.end));
        }
      }
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

Schedule make_schedule(const ContrastiveProblem& problem, int tile_slots, int unit_negatives) {
  const int64_t* begin = problem.same_class_begin;
  const int64_t* end = problem.same_class_end;
  std::vector<int64_t> active;
  for (int64_t i = 0; i < problem.num_anchors; ++i) {
    if (problem.direction[i] != kInactive) active.push_back(i);
  }
  std::stable_sort(active.begin(), active.end(), [&](int64_t i, int64_t j) {
    return begin[i] != begin[j] ? begin[i] < begin[j] : end[i] < end[j];
  });

  ScheduleBuilder builder(problem, tile_slots, unit_negatives);
  std::vector<int64_t> mixed;
  if (problem.interval_counts) mixed.swap(active);
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
