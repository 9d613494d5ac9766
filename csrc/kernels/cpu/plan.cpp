#include "kernels/cpu/plan.h"

#include <algorithm>
#include <limits>

namespace cac::cpu {
namespace {

class TileBuilder {
 public:
  TileBuilder(const ContrastiveProblem& problem, int lanes) : problem_(problem), lanes_(lanes) {}

  void add_tile(const int64_t* anchors, int64_t count) {
    TileMask mask{0, std::numeric_limits<int32_t>::max(), std::numeric_limits<int32_t>::max(), 0};
    for (int lane = 0; lane < lanes_; ++lane) {
      const int64_t anchor = anchors[std::min<int64_t>(lane, count - 1)];
      const auto begin = static_cast<int32_t>(problem_.same_class_begin[anchor]);
      const auto end = static_cast<int32_t>(problem_.same_class_end[anchor]);
      plan_.lane_anchor.push_back(lane < count ? anchor : -1);
      plan_.lane_begin.push_back(begin);
      plan_.lane_end.push_back(end);
      mask.skip_begin = std::max(mask.skip_begin, begin);
      mask.skip_end = std::min(mask.skip_end, end);
      if (begin == end) continue;
      mask.masked_begin = std::min(mask.masked_begin, begin);
      mask.masked_end = std::max(mask.masked_end, end);
    }
    plan_.masks.push_back(mask);
    ++plan_.num_tiles;
  }

  TilePlan take() { return std::move(plan_); }

 private:
  const ContrastiveProblem& problem_;
  const int lanes_;
  TilePlan plan_;
};

}  // namespace

TilePlan plan_tiles(const ContrastiveProblem& problem, int lanes) {
  const int64_t* begin = problem.same_class_begin;
  const int64_t* end = problem.same_class_end;
  std::vector<int64_t> active;
  for (int64_t i = 0; i < problem.num_anchors; ++i) {
    if (problem.direction[i] != kInactive) active.push_back(i);
  }
  std::stable_sort(active.begin(), active.end(), [&](int64_t i, int64_t j) {
    return begin[i] != begin[j] ? begin[i] < begin[j] : end[i] < end[j];
  });

  TileBuilder builder(problem, lanes);
  std::vector<int64_t> mixed;
  for (size_t first = 0; first < active.size();) {
    size_t last = first;
    while (last < active.size() && begin[active[last]] == begin[active[first]] &&
           end[active[last]] == end[active[first]]) {
      ++last;
    }
    const int64_t same_class = end[active[first]] - begin[active[first]];
    for (; first + lanes <= last; first += lanes) builder.add_tile(&active[first], lanes);
    const auto rest = static_cast<int64_t>(last - first);
    if (rest > 0 && lanes * (problem.num_negatives - same_class) <= rest * problem.num_negatives) {
      builder.add_tile(&active[first], rest);
    } else {
      mixed.insert(mixed.end(), active.begin() + first, active.begin() + last);
    }
    first = last;
  }
  for (size_t first = 0; first < mixed.size(); first += lanes) {
    builder.add_tile(&mixed[first], std::min<int64_t>(lanes, mixed.size() - first));
  }
  return builder.take();
}

}  // namespace cac::cpu
