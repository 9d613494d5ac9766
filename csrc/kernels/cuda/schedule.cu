#include "kernels/cuda/schedule.h"
#include "kernels/problem.h"
#include "kernels/row_math.h"

namespace cac::cuda {
namespace {

constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / 32;

// Anchors are sorted by the middle of their interval, in 256 steps. Two classes are in one step
// only if both hold less than 1/128 of the negatives: a tile that mixes them fails to skip no more
// than that. (The beginnings of the intervals would not do: a rare class and a large one after it
// begin close together.) Inactive anchors come last.
constexpr int kClassBuckets = 256;
constexpr int kInactiveBucket = kClassBuckets;
constexpr int kBuckets = kClassBuckets + 1;
constexpr int kSharedBytes = (kWarps + 1) * kBuckets * static_cast<int>(sizeof(int32_t));

// Loads that a warp starts before it waits for the first.
constexpr int kUnroll = 4;

// Number of negatives that count. The schedule ignores all others.
__device__ __forceinline__ int count_valid(const ScheduleParams& params) {
  int64_t count = params.num_negatives;
  if (params.num_valid != nullptr && *params.num_valid < count) count = *params.num_valid;
  return count < 0 ? 0 : static_cast<int>(count);
}

// The valid negatives of the anchor's class.
__device__ __forceinline__ int2 interval_of(const ScheduleParams& params, int valid, int anchor) {
  const int64_t begin = params.same_class_begin[anchor];
  const int64_t end = params.same_class_end[anchor];
  return make_int2(static_cast<int>(begin < valid ? begin : valid),
                   static_cast<int>(end < valid ? end : valid));
}

__device__ __forceinline__ int bucket_of(const ScheduleParams& params, int valid, int anchor) {
  if (params.direction[anchor] == kInactive) return kInactiveBucket;
  const int2 interval = interval_of(params, valid, anchor);
  const int64_t twice_middle = static_cast<int64_t>(interval.x) + interval.y;
  return static_cast<int>(twice_middle * kClassBuckets / (2 * static_cast<int64_t>(valid) + 1));
}

// Calls visit(anchor, bucket, peers) for the warp's segment of anchors, 32 at a time and in order;
// `peers` are the lanes that hold an anchor of the same bucket, bucket is -1 beyond the end.
template <class Visit>
__device__ __forceinline__ void for_each_anchor(const ScheduleParams& params, int valid, int warp,
                                                int lane, Visit visit) {
  const int segment = (params.num_anchors + kWarps * 32 - 1) / (kWarps * 32) * 32;
  const int64_t begin = static_cast<int64_t>(warp) * segment;
  const int64_t limit = begin + segment;
  const int64_t end = limit < params.num_anchors ? limit : params.num_anchors;
  for (int64_t first = begin; first < end; first += 32 * kUnroll) {
    int buckets[kUnroll];
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) {
      const int64_t anchor = first + 32 * i + lane;
      buckets[i] = anchor < end ? bucket_of(params, valid, static_cast<int>(anchor)) : -1;
    }
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) {
      const unsigned peers = __match_any_sync(device::kFullWarp, buckets[i]);
      visit(static_cast<int>(first + 32 * i + lane), buckets[i], peers);
    }
  }
}

template <class T>
__device__ __forceinline__ T warp_inclusive_sum(T x, int lane) {
#pragma unroll
  for (int delta = 1; delta < 32; delta *= 2) {
    const T below = __shfl_up_sync(device::kFullWarp, x, delta);
    if (lane >= delta) x += below;
  }
  return x;
}

// A stable counting sort. Each warp has its own counters, so that nothing depends on timing.
__device__ __forceinline__ int sort_anchors(const ScheduleParams& params, int valid, int warp,
                                            int lane, int32_t* counts, int32_t* starts) {
  for (int i = threadIdx.x; i < kWarps * kBuckets; i += kThreads) counts[i] = 0;
  __syncthreads();

  int32_t* mine = counts + warp * kBuckets;
  const unsigned lanes_below = (1u << lane) - 1u;
  for_each_anchor(params, valid, warp, lane, [&](int, int bucket, unsigned peers) {
    if (bucket >= 0 && (peers & lanes_below) == 0) mine[bucket] += __popc(peers);
    __syncwarp();
  });
  __syncthreads();

  // Counts become offsets within the bucket, warp after warp, and `starts` those of the buckets.
  for (int bucket = threadIdx.x; bucket < kBuckets; bucket += kThreads) {
    int32_t total = 0;
    for (int i = 0; i < kWarps; ++i) {
      const int32_t count = counts[i * kBuckets + bucket];
      counts[i * kBuckets + bucket] = total;
      total += count;
    }
    starts[bucket] = total;
  }
  __syncthreads();
  if (warp == 0) {
    int32_t carry = 0;
    for (int first = 0; first < kBuckets; first += 32) {
      const int bucket = first + lane;
      const int32_t count = bucket < kBuckets ? starts[bucket] : 0;
      const int32_t inclusive = warp_inclusive_sum(count, lane);
      if (bucket < kBuckets) starts[bucket] = carry + inclusive - count;
      carry += __shfl_sync(device::kFullWarp, inclusive, 31);
    }
  }
  __syncthreads();

  for_each_anchor(params, valid, warp, lane, [&](int anchor, int bucket, unsigned peers) {
    const int32_t offset = bucket >= 0 ? mine[bucket] : 0;
    __syncwarp();
    if (bucket >= 0 && (peers & lanes_below) == 0) mine[bucket] = offset + __popc(peers);
    if (bucket >= 0) {
      const int32_t slot = starts[bucket] + offset + __popc(peers & lanes_below);
      params.schedule.anchors[slot] = anchor;
      params.schedule.intervals[slot] = interval_of(params, valid, anchor);
    }
    __syncwarp();
  });
  return starts[kInactiveBucket];
}

// Finds the span of the tile with the slots [begin, end). Returns the number of its units.
__device__ __forceinline__ int span_of_tile(const ScheduleParams& params, int all, int begin,
                                            int end, int lane, TileSpan& span) {
  const int units = (all + params.unit_negatives - 1) / params.unit_negatives;
  // [common_begin, common_end) is inside the intervals of all slots.
  int common_begin = 0;
  int common_end = all;
  int hull_begin = all;
  int hull_end = 0;
  int excluded_begin = all;
  int excluded_end = 0;
  for (int slot = begin + lane; slot < end; slot += 32) {
    const int2 interval = params.schedule.intervals[slot];
    common_begin = interval.x > common_begin ? interval.x : common_begin;
    common_end = interval.y < common_end ? interval.y : common_end;
    if (interval.x < interval.y) {
      hull_begin = interval.x < hull_begin ? interval.x : hull_begin;
      hull_end = interval.y > hull_end ? interval.y : hull_end;
    }
    if (params.problem.excluded != nullptr) {
      const Columns columns = excluded_columns(params.problem, params.schedule.anchors[slot]);
      if (columns.begin < columns.end) {
        const int low = static_cast<int>(columns.begin);
        const int high = static_cast<int>(columns.end);
        excluded_begin = low < excluded_begin ? low : excluded_begin;
        excluded_end = high > excluded_end ? high : excluded_end;
      }
    }
  }
  for (int lane_mask = 16; lane_mask > 0; lane_mask /= 2) {
    const int other_begin = __shfl_xor_sync(device::kFullWarp, common_begin, lane_mask);
    const int other_end = __shfl_xor_sync(device::kFullWarp, common_end, lane_mask);
    const int other_hull_begin = __shfl_xor_sync(device::kFullWarp, hull_begin, lane_mask);
    const int other_hull_end = __shfl_xor_sync(device::kFullWarp, hull_end, lane_mask);
    common_begin = other_begin > common_begin ? other_begin : common_begin;
    common_end = other_end < common_end ? other_end : common_end;
    hull_begin = other_hull_begin < hull_begin ? other_hull_begin : hull_begin;
    hull_end = other_hull_end > hull_end ? other_hull_end : hull_end;
    const int other_low = __shfl_xor_sync(device::kFullWarp, excluded_begin, lane_mask);
    const int other_high = __shfl_xor_sync(device::kFullWarp, excluded_end, lane_mask);
    excluded_begin = other_low < excluded_begin ? other_low : excluded_begin;
    excluded_end = other_high > excluded_end ? other_high : excluded_end;
  }
  if (params.problem.interval_counts) {
    const int low = hull_begin / params.unit_negatives;
    const int high = (hull_end + params.unit_negatives - 1) / params.unit_negatives;
    span = {0, low, common_begin, common_end, excluded_begin, excluded_end};
    return begin < end && low < high ? high - low : 0;
  }
  span = {units, units, hull_begin, hull_end, excluded_begin, excluded_end};
  if (begin >= end) {
    span.skip_begin = 0;
  } else if (common_begin < common_end) {
    const int low = (common_begin + params.unit_negatives - 1) / params.unit_negatives;
    const int high = common_end == all ? units : common_end / params.unit_negatives;
    if (low < high) {
      span.skip_begin = low;
      span.skip_end = high;
    }
  }
  return span.skip_begin + units - span.skip_end;
}

__global__ __launch_bounds__(kThreads) void schedule_kernel(ScheduleParams params) {
  int32_t* counts = reinterpret_cast<int32_t*>(device::dynamic_shared_memory());
  int32_t* starts = counts + kWarps * kBuckets;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const Schedule& schedule = params.schedule;

  const int valid = count_valid(params);
  const int num_active = sort_anchors(params, valid, warp, lane, counts, starts);
  if (threadIdx.x == 0) {
    *schedule.num_active = num_active;
    *schedule.num_valid = valid;
    schedule.tile_starts[0] = 0;
  }
  __syncthreads();

  for (int tile = warp; tile < params.max_tiles; tile += kWarps) {
    const int64_t begin = static_cast<int64_t>(tile) * params.tile_slots;
    const int64_t limit = begin + params.tile_slots;
    const int64_t end = limit < num_active ? limit : num_active;
    TileSpan span;
    const int units =
        span_of_tile(params, valid, static_cast<int>(begin), static_cast<int>(end), lane, span);
    if (lane == 0) {
      schedule.spans[tile] = span;
      schedule.tile_starts[tile + 1] = units;
    }
  }
  __syncthreads();

  if (warp == 0) {
    int64_t carry = 0;
    for (int first = 0; first < params.max_tiles; first += 32) {
      const int tile = first + lane;
      const int64_t units = tile < params.max_tiles ? schedule.tile_starts[tile + 1] : 0;
      const int64_t inclusive = warp_inclusive_sum(units, lane);
      if (tile < params.max_tiles) schedule.tile_starts[tile + 1] = carry + inclusive;
      carry += __shfl_sync(device::kFullWarp, inclusive, 31);
    }
  }
}

}  // namespace

void launch_schedule(const ScheduleParams& params, cudaStream_t stream) {
  device::launch(schedule_kernel, 1, kThreads, kSharedBytes, stream, params);
}

}  // namespace cac::cuda
