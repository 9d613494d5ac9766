#include "kernels/cpu/schedule.h"

#include <algorithm>
#include <limits>
#include <unordered_map>
#include <utility>

namespace cac::cpu {
namespace {

class ScheduleBuilder {
 public:
  ScheduleBuilder(const ContrastiveProblem& problem, int tile_slots, int unit_negatives)
      : problem_(problem), tile_slots_(tile_slots) {
    if (problem.excluded == nullptr || problem.column_ids == nullptr) return;
    schedule_.column_ids.assign(problem.num_negatives + unit_negatives, -1);
    std::copy_n(problem.column_ids, problem.num_negatives, schedule_.column_ids.begin());
    for (int64_t j = 0; j < problem.num_negatives; ++j) {
      const auto column = static_cast<int32_t>(j);
      Range& range = columns_of_id_.try_emplace(problem.column_ids[j], Range{column, column})
                         .first->second;
      range.end = column + 1;
    }
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
        const int64_t id = problem_.excluded[anchor];
        schedule_.excluded.push_back(static_cast<int32_t>(id));
        const Range columns = columns_of(id);
        span.excluded_begin = std::min(span.excluded_begin, columns.begin);
        span.excluded_end = std::max(span.excluded_end, columns.end);
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
  struct Range {
    int32_t begin, end;
  };

  // All columns with this id lie inside.
  Range columns_of(int64_t id) const {
    constexpr Range kNone{std::numeric_limits<int32_t>::max(), 0};
    if (id < 0) return kNone;
    if (schedule_.column_ids.empty()) {
      const auto column = static_cast<int32_t>(id);
      return {column, column + 1};
    }
    const auto found = columns_of_id_.find(id);
    return found == columns_of_id_.end() ? kNone : found->second;
  }

  const ContrastiveProblem& problem_;
  const int tile_slots_;
  std::unordered_map<int64_t, Range> columns_of_id_;
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
