// Runs requests on the emulated device: `emulate REQUEST RESULT`. Or prints the launch plan of a
// call with a gradient: `emulate plan ARITHMETIC ANCHORS NEGATIVES CHANNELS DTYPE MULTIPROCESSORS`.
//
// A request file holds one call after the other as written by python_tests/cuda_emulation: a fixed
// header, then the arrays. Every array becomes an allocation of its exact size.
#define CAC_EMULATION_HOST
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

#include "device_emulation.h"
#include "kernels/cuda/launch.h"

namespace {

using namespace cac;

struct Header {
  int64_t objective, feature_dtype, num_anchors, channels, row_stride, with_positives;
  int64_t arithmetic, num_negatives, negative_stride, negative_dtype, padded_channels;
  int64_t num_leading_rows, normalize, with_gradient, element_bytes, negative_element_bytes;
  int64_t multiprocessors, execution_order, max_workers, wave_tiles;
  int64_t num_valid;  // -1: all
  int64_t interval_counts, with_excluded, with_column_ids, with_statistics;
  int64_t with_log_sums, with_columns, temperature_on_device, shared_kib;
  double temperature, eps;
};

void require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "emulate: %s\n", what);
  std::exit(2);
}

// Exactly `bytes` long, aligned as cudaMalloc aligns, filled with NaN bits.
class Buffer {
 public:
  explicit Buffer(size_t bytes) : bytes_(bytes) {
    void* data = nullptr;
    require(posix_memalign(&data, 256, bytes > 0 ? bytes : 1) == 0, "out of memory");
    data_.reset(static_cast<char*>(data));
    std::memset(data_.get(), 0xff, bytes);
  }
  Buffer(std::FILE* file, size_t bytes) : Buffer(bytes) {
    require(std::fread(data_.get(), 1, bytes, file) == bytes, "the request ends early");
  }
  void write(std::FILE* file) const { std::fwrite(data_.get(), 1, bytes_, file); }
  void* data() const { return data_.get(); }
  template <class T>
  const T* as() const {
    return reinterpret_cast<const T*>(data_.get());
  }

 private:
  struct Free {
    void operator()(char* data) const { std::free(data); }
  };
  size_t bytes_;
  std::unique_ptr<char, Free> data_;
};

void run(const Header& header, std::FILE* request, std::FILE* result) {
  const size_t feature_bytes =
      header.num_anchors == 0
          ? 0
          : ((header.num_anchors - 1) * header.row_stride + header.channels) * header.element_bytes;
  const Buffer features1(request, feature_bytes);
  const Buffer features2(request, header.with_positives ? feature_bytes : 0);
  const Buffer direction(request, header.num_anchors);
  const Buffer begin(request, header.num_anchors * 8);
  const Buffer end(request, header.num_anchors * 8);
  const size_t source_bytes =
      header.num_negatives == 0
          ? 0
          : ((header.num_negatives - 1) * header.negative_stride + header.channels) *
                header.element_bytes;
  const Buffer source(request, source_bytes);
  const Buffer order(request, header.num_negatives * 8);
  const Buffer leading_rows(request, header.num_leading_rows * 8);
  const Buffer excluded(request, header.with_excluded ? header.num_anchors * 8 : 0);
  const Buffer column_ids(request, header.with_column_ids ? header.num_negatives * 8 : 0);
  const Buffer excluded_begin(request, header.with_column_ids ? header.num_anchors * 8 : 0);
  const Buffer excluded_end(request, header.with_column_ids ? header.num_anchors * 8 : 0);
  const Buffer log_sums(request, header.with_log_sums ? header.num_anchors * 4 : 0);
  const Buffer column_log_sums(request, header.with_columns ? header.num_negatives * 4 : 0);
  const Buffer column_weights(request, header.with_columns ? header.num_negatives * 4 : 0);

  emulation::settings.multiprocessors = static_cast<int>(header.multiprocessors);
  emulation::settings.execution_order = static_cast<uint64_t>(header.execution_order);
  emulation::settings.shared_kib = static_cast<int>(header.shared_kib);
  emulation::matrix_products = emulation::launches = 0;

  const Buffer negatives(header.num_negatives * header.padded_channels *
                         header.negative_element_bytes);
  PrepareRows prepare{};
  prepare.source = source.data();
  prepare.row_stride = header.negative_stride;
  prepare.source_dtype = static_cast<DType>(header.feature_dtype);
  prepare.order = order.as<int64_t>();
  prepare.num_rows = header.num_negatives;
  prepare.channels = header.channels;
  prepare.normalize = header.normalize != 0;
  prepare.destination = negatives.data();
  prepare.destination_dtype = static_cast<DType>(header.negative_dtype);
  prepare.padded_channels = header.padded_channels;
  cuda::prepare_rows(prepare, nullptr);

  const Buffer values(header.num_anchors * 4);
  const Buffer gradients(header.with_gradient ? header.num_anchors * header.channels * 4 : 0);
  const Buffer num_valid(sizeof(int64_t));
  std::memcpy(num_valid.data(), &header.num_valid, sizeof(int64_t));
  ContrastiveProblem problem{};
  problem.objective = static_cast<Objective>(header.objective);
  problem.features[0] = features1.data();
  problem.features[1] = header.with_positives ? features2.data() : nullptr;
  problem.row_strides[0] = problem.row_strides[1] = header.row_stride;
  problem.feature_dtype = static_cast<DType>(header.feature_dtype);
  problem.num_anchors = header.num_anchors;
  problem.channels = header.channels;
  problem.direction = direction.as<int8_t>();
  problem.negatives = negatives.data();
  problem.negative_dtype = static_cast<DType>(header.negative_dtype);
  problem.num_negatives = header.num_negatives;
  problem.padded_channels = header.padded_channels;
  problem.num_valid = header.num_valid < 0 ? nullptr : num_valid.as<int64_t>();
  problem.same_class_begin = begin.as<int64_t>();
  problem.same_class_end = end.as<int64_t>();
  problem.interval_counts = header.interval_counts != 0;
  if (header.with_excluded) problem.excluded = excluded.as<int64_t>();
  if (header.with_column_ids) {
    problem.column_ids = column_ids.as<int64_t>();
    problem.excluded_begin = excluded_begin.as<int64_t>();
    problem.excluded_end = excluded_end.as<int64_t>();
  }
  if (header.with_log_sums) problem.log_sums = log_sums.data();
  if (header.with_columns) {
    problem.column_log_sums = column_log_sums.data();
    problem.column_weights = column_weights.data();
  }
  const Buffer temperature(sizeof(double));
  std::memcpy(temperature.data(), &header.temperature, sizeof(double));
  if (header.temperature_on_device) {
    problem.temperature_on_device = temperature.as<double>();
  } else {
    problem.temperature = header.temperature;
  }
  const size_t column_bytes = header.with_statistics ? header.num_anchors * 4 : 0;
  const Buffer statistics(4 * column_bytes);
  if (header.with_statistics) {
    char* row = static_cast<char*>(statistics.data());
    problem.statistics = {row, row + column_bytes, row + 2 * column_bytes, row + 3 * column_bytes};
  }
  problem.normalize = header.normalize != 0;
  problem.eps = header.eps;
  problem.leading_rows = leading_rows.as<int64_t>();
  problem.num_leading_rows = header.num_leading_rows;
  problem.values = values.data();
  problem.gradients = header.with_gradient ? gradients.data() : nullptr;

  const auto arithmetic = static_cast<cuda::Arithmetic>(header.arithmetic);
  require(cuda::fits_device(problem, arithmetic), "the problem does not fit the device");
  cuda::LaunchPlan plan = cuda::plan_launch(problem, arithmetic);
  if (header.max_workers > 0) plan.max_workers = header.max_workers;
  if (header.wave_tiles > 0) plan.wave_tiles = header.wave_tiles;
  const Buffer workspace(cuda::workspace_bytes(problem, plan));
  cuda::solve(problem, plan, workspace.data(), nullptr);
  emulation::clear_gaps(workspace.data(), cuda::workspace_bytes(problem, plan));

  values.write(result);
  gradients.write(result);
  statistics.write(result);
  const int64_t counters[] = {emulation::matrix_products, emulation::launches};
  std::fwrite(counters, sizeof(counters), 1, result);
}

void print_plan(char** numbers) {
  float unused = 0;
  ContrastiveProblem problem{};
  problem.objective = Objective::kContrastiveLoss;
  problem.num_anchors = std::atoll(numbers[1]);
  problem.num_negatives = std::atoll(numbers[2]);
  problem.channels = problem.padded_channels = std::atoll(numbers[3]);
  problem.feature_dtype = problem.negative_dtype = static_cast<DType>(std::atoi(numbers[4]));
  problem.temperature = 0.1;
  problem.normalize = true;
  problem.gradients = &unused;
  emulation::settings.multiprocessors = std::atoi(numbers[5]);
  const auto arithmetic = static_cast<cuda::Arithmetic>(std::atoi(numbers[0]));
  const cuda::LaunchPlan plan = cuda::plan_launch(problem, arithmetic);
  std::printf("max_tiles %lld wave_tiles %lld max_workers %lld workspace_bytes %zu\n",
              static_cast<long long>(plan.max_tiles), static_cast<long long>(plan.wave_tiles),
              static_cast<long long>(plan.max_workers), cuda::workspace_bytes(problem, plan));
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 8 && std::strcmp(argv[1], "plan") == 0) {
    print_plan(argv + 2);
    return 0;
  }
  require(argc == 3, "usage: emulate REQUEST RESULT");
  std::FILE* request = std::fopen(argv[1], "rb");
  std::FILE* result = std::fopen(argv[2], "wb");
  require(request != nullptr && result != nullptr, "cannot open REQUEST or RESULT");
  Header header;
  while (std::fread(&header, sizeof(header), 1, request) == 1) run(header, request, result);
  std::fclose(request);
  std::fclose(result);
  return 0;
}
