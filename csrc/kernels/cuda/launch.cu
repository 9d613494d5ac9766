#include <algorithm>
#include <limits>

#include "kernels/cuda/combine.h"
#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/schedule.h"
#include "kernels/cuda/stream.h"

namespace cac::cuda {
namespace {

constexpr double kLog2E = 1.44269504088896340736;

// The partials may take twice the bytes of the negatives, or this if it is more.
constexpr int64_t kPartialBytes = 24ll << 20;

// Below this temperature 2^15 exp((cos - 1) / tau) leaves the normal range of float16.
constexpr double kFloat16BoundedShiftTemperature = 0.0995;

StreamVariant variant_for(Arithmetic arithmetic, int64_t channels, StreamKind kind, bool gradient) {
  const int count = static_cast<int>(channels);
  const int max_shared_bytes = device::max_shared_bytes();
  switch (arithmetic) {
    case Arithmetic::kBFloat16:
      return bfloat16_variant(count, kind, gradient, max_shared_bytes);
    case Arithmetic::kFloat16:
      return float16_variant(count, kind, gradient, max_shared_bytes);
    case Arithmetic::kTensorFloat32:
      return tensor_float32_variant(count, kind, gradient, max_shared_bytes);
    case Arithmetic::kFloat32:
      return float32_variant(count, kind, gradient, max_shared_bytes);
  }
  throw std::runtime_error("cac_ext: unknown arithmetic");
}

bool has_given_shifts(const ContrastiveProblem& problem) {
  return problem.objective == Objective::kMarginSum || is_gradient_of_columns(problem.objective);
}

// Whether the kernel sums weighted negatives; kGiven always does.
bool has_weighted(const ContrastiveProblem& problem) {
  return problem.gradients != nullptr || has_given_shifts(problem);
}

StreamVariant variant_for(const ContrastiveProblem& problem, const LaunchPlan& plan) {
  const StreamKind kind = has_given_shifts(problem) ? StreamKind::kGiven
                          : plan.online             ? StreamKind::kOnline
                                                    : StreamKind::kBounded;
  return variant_for(plan.arithmetic, problem.padded_channels, kind, has_weighted(problem));
}

// The kernel that finds the row maximum over the leading negatives.
StreamVariant row_max_variant(const ContrastiveProblem& problem, const LaunchPlan& plan) {
  return variant_for(plan.arithmetic, problem.padded_channels, StreamKind::kOnline, false);
}

int64_t ceil_div(int64_t x, int64_t y) { return (x + y - 1) / y; }

void require(bool condition, const std::string& what) {
  if (!condition) throw std::runtime_error("cac_ext: " + what);
}

// Cuts one allocation into aligned arrays.
class Carver {
 public:
  explicit Carver(void* base) : base_(static_cast<char*>(base)) {}

  template <class T>
  T* take(int64_t count) {
    const size_t bytes = static_cast<size_t>(count) * sizeof(T);
    char* array = base_ + offset_;
    const size_t next = (offset_ + bytes + 2 * kAlignment - 1) / kAlignment * kAlignment;
    if (base_ != nullptr) device::mark_gap(array + bytes, next - offset_ - bytes);
    offset_ = next;
    return reinterpret_cast<T*>(array);
  }

  size_t bytes() const { return offset_; }

 private:
  static constexpr size_t kAlignment = 256;
  char* base_;
  size_t offset_ = 0;
};

struct Workspace {
  Schedule schedule;
  Partials partials;
  float* row_max;
  size_t bytes;
};

Workspace carve(const ContrastiveProblem& problem, const LaunchPlan& plan, void* base) {
  Carver carver(base);
  Workspace workspace = {};
  Schedule& schedule = workspace.schedule;
  schedule.num_active = carver.take<int32_t>(1);
  schedule.num_valid = carver.take<int32_t>(1);
  schedule.anchors = carver.take<int32_t>(problem.num_anchors);
  schedule.intervals = carver.take<int2>(problem.num_anchors);
  schedule.spans = carver.take<TileSpan>(plan.max_tiles);
  schedule.tile_starts = carver.take<int64_t>(plan.max_tiles + 1);
  const int64_t sums = (plan.wave_tiles + plan.max_workers) * plan.tile_slots;
  workspace.partials.shifts = carver.take<float>(sums);
  workspace.partials.sums = carver.take<float>(sums);
  if (has_weighted(problem)) {
    workspace.partials.weighted = carver.take<float>(sums * plan.channels);
  }
  if (has_given_shifts(problem)) workspace.partials.margins = carver.take<float>(sums);
  if (problem.eps > 0) workspace.row_max = carver.take<float>(problem.num_anchors);
  workspace.bytes = carver.bytes();
  return workspace;
}

}  // namespace

bool fits_device(const ContrastiveProblem& problem, Arithmetic arithmetic) {
  const StreamVariant variant =
      variant_for(arithmetic, problem.padded_channels, StreamKind::kBounded, has_weighted(problem));
  if (variant.shared_bytes > device::max_shared_bytes()) return false;
  // Other arithmetics are not chosen for a device that lacks them, so plan_launch reports those.
  return arithmetic != Arithmetic::kFloat32 ||
         device::code_architecture(variant.kernel) >= variant.minimum_architecture;
}

LaunchPlan plan_launch(const ContrastiveProblem& problem, Arithmetic arithmetic) {
  constexpr int64_t kMaxCount = std::numeric_limits<int32_t>::max() / 2;
  require(problem.padded_channels <= kMaxPaddedChannels,
          "the CUDA kernels take at most " + std::to_string(kMaxPaddedChannels) +
              " channels, but got " + std::to_string(problem.channels));
  require(problem.padded_channels * element_bytes(problem.negative_dtype) % 16 == 0,
          "rows of prepared negatives must be padded to whole 16 bytes");
  require(problem.num_anchors <= kMaxCount && problem.num_negatives <= kMaxCount,
          "at most 2^30 anchors and negatives are supported, but got " +
              std::to_string(problem.num_anchors) + " anchors and " +
              std::to_string(problem.num_negatives) + " negatives");

  LaunchPlan plan = {};
  plan.arithmetic = arithmetic;
  // Vectors of unit length have bounded scores.
  plan.online =
      !problem.normalize || problem.interval_counts || problem.excluded != nullptr ||
      problem.temperature_on_device != nullptr ||
      problem.temperature < (arithmetic == Arithmetic::kFloat16 ? kFloat16BoundedShiftTemperature
                                                                : kBoundedShiftTemperature);
  const bool gradient = has_weighted(problem);
  const StreamVariant variant = variant_for(problem, plan);
  const int compiled_for = device::code_architecture(variant.kernel);
  require(compiled_for >= variant.minimum_architecture,
          "the kernels that run on this GPU were compiled for sm_" + std::to_string(compiled_for) +
              ", but this precision needs sm_" + std::to_string(variant.minimum_architecture) +
              "; build cac_ext with this GPU's architecture in TORCH_CUDA_ARCH_LIST");
  plan.tile_slots = variant.tile_slots;
  plan.channels = variant.channels;
  plan.max_tiles = ceil_div(problem.num_anchors, plan.tile_slots);

  const int64_t partial_bytes =
      plan.tile_slots * static_cast<int64_t>(sizeof(float)) * (gradient ? plan.channels + 2 : 2);
  const int64_t negative_bytes =
      problem.num_negatives * problem.padded_channels * element_bytes(problem.negative_dtype);
  const int64_t max_partials = std::max(kPartialBytes, 2 * negative_bytes) / partial_bytes;
  const int64_t resident =
      static_cast<int64_t>(device::multiprocessor_count()) *
      std::max(1, device::resident_blocks(variant.kernel, variant.threads, variant.shared_bytes));
  const int64_t most_negatives =
      std::max(problem.num_negatives, problem.eps > 0 ? problem.num_leading_rows : 0);
  const int64_t useful =
      ceil_div(plan.max_tiles * ceil_div(most_negatives, variant.unit_negatives), kMinUnitsOfShare);
  // A wave leaves at most one partial a tile and one a worker. If the tiles of a single wave would
  // take more than half of the partials, there are several waves instead.
  const int64_t for_workers = std::max(max_partials / 2, max_partials - plan.max_tiles);
  plan.max_workers = std::max<int64_t>(1, std::min({resident, useful, for_workers}));
  // Positions on a wave's line of work have 32 bits.
  const int64_t countable =
      (int64_t{1} << 30) / std::max<int64_t>(1, ceil_div(most_negatives, variant.unit_negatives));
  plan.wave_tiles =
      std::max<int64_t>(1, std::min({plan.max_tiles, max_partials - plan.max_workers, countable}));
  return plan;
}

size_t workspace_bytes(const ContrastiveProblem& problem, const LaunchPlan& plan) {
  return carve(problem, plan, nullptr).bytes;
}

void solve(const ContrastiveProblem& problem, const LaunchPlan& plan, void* memory,
           cudaStream_t stream) {
  if (problem.num_anchors == 0) return;
  const Workspace workspace = carve(problem, plan, memory);
  const StreamVariant variant = variant_for(problem, plan);
  const StreamVariant row_max = row_max_variant(problem, plan);

  launch_schedule({problem.direction, problem.same_class_begin, problem.same_class_end,
                   static_cast<int32_t>(problem.num_anchors), static_cast<int32_t>(plan.max_tiles),
                   static_cast<int32_t>(plan.tile_slots), variant.unit_negatives,
                   problem.num_negatives, problem.num_valid, workspace.schedule, problem},
                  stream);

  WaveParams wave = {};
  wave.tile_slots = static_cast<int32_t>(plan.tile_slots);
  wave.max_workers = static_cast<int32_t>(plan.max_workers);
  StreamParams pass = {};
  pass.problem = problem;
  pass.schedule = workspace.schedule;
  pass.partials = workspace.partials;
  if (problem.temperature_on_device == nullptr) {
    pass.scale = static_cast<float>(kLog2E / problem.temperature);
  }
  CombineParams sums = {};
  sums.problem = problem;
  sums.schedule = workspace.schedule;
  sums.partials = workspace.partials;
  sums.partial_channels = static_cast<int32_t>(plan.channels);
  sums.row_max = workspace.row_max;

  for (int64_t first = 0; first < plan.max_tiles; first += plan.wave_tiles) {
    wave.first_tile = static_cast<int32_t>(first);
    wave.num_tiles = static_cast<int32_t>(std::min(plan.wave_tiles, plan.max_tiles - first));
    if (problem.eps > 0) {
      wave.unit_negatives = row_max.unit_negatives;
      wave.num_negatives = static_cast<int32_t>(problem.num_leading_rows);
      wave.mask_labels = false;
      pass.wave = wave;
      pass.rows = problem.leading_rows;
      pass.stages = row_max.stages;
      device::launch(row_max.kernel, plan.max_workers, row_max.threads, row_max.shared_bytes,
                     stream, pass);
      sums.wave = wave;
      launch_row_max(sums, stream);
    }
    wave.unit_negatives = variant.unit_negatives;
    wave.num_negatives = static_cast<int32_t>(problem.num_negatives);
    wave.mask_labels = true;
    pass.wave = wave;
    pass.rows = nullptr;
    pass.stages = variant.stages;
    device::launch(variant.kernel, plan.max_workers, variant.threads, variant.shared_bytes, stream,
                   pass);
    sums.wave = wave;
    launch_combine(sums, stream);
  }
}

}  // namespace cac::cuda
