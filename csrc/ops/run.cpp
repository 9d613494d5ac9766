#include "ops/run.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/searchsorted.h>
#include <ATen/ops/sort.h>
#include <ATen/ops/where.h>

#include "ops/backend.h"

namespace cac {

at::Tensor with_contiguous_channels(const at::Tensor& features) {
  return features.stride(1) == 1 || features.size(1) == 1 ? features : features.contiguous();
}

at::Tensor not_ignored(const at::Tensor& labels, std::optional<int64_t> ignore_index) {
  return ignore_index.has_value() ? labels.to(at::kLong).ne(*ignore_index) : at::Tensor();
}

at::Tensor all_first_to_second(const at::Tensor& anchors, const at::Tensor& active,
                               const at::Tensor& counted) {
  static_assert(kInactive == 0 && kFirstToSecond == 1, "a bool is a direction");
  if (active.defined() && counted.defined()) {
    return active.logical_and(counted).to(at::kChar);
  }
  const at::Tensor& mask = active.defined() ? active : counted;
  return mask.defined()
             ? mask.to(at::kChar).contiguous()
             : at::full({anchors.size(0)}, kFirstToSecond, anchors.options().dtype(at::kChar));
}

Prepared prepare(const at::Tensor& negatives, const at::Tensor& labels, const at::Tensor& counted,
                 bool normalize) {
  Prepared result;
  at::Tensor keys = labels.to(at::kLong);
  if (counted.defined()) {
    keys = at::where(counted, keys, kIgnoredKey);
    result.num_valid = counted.sum();
  } else {
    result.num_valid = at::full({}, negatives.size(0), keys.options());
  }
  std::tie(result.labels, result.order) =
      at::sort(keys, /*stable=*/true, /*dim=*/0, /*descending=*/false);
  const Backend& backend = backend_for(negatives.device().type());
  const at::ScalarType type = backend.compute_type(negatives.scalar_type());
  const int64_t multiple = backend.channel_multiple(type);
  const int64_t padded_channels = (negatives.size(1) + multiple - 1) / multiple * multiple;
  result.features =
      at::empty({negatives.size(0), padded_channels}, negatives.options().dtype(type));
  const at::Tensor source = with_contiguous_channels(negatives);

  PrepareRows rows{};
  rows.source = source.const_data_ptr();
  rows.row_stride = source.stride(0);
  rows.source_dtype = kernel_type(source.scalar_type());
  rows.order = result.order.const_data_ptr<int64_t>();
  rows.num_rows = source.size(0);
  rows.channels = source.size(1);
  rows.normalize = normalize;
  rows.destination = result.features.mutable_data_ptr();
  rows.destination_dtype = kernel_type(type);
  rows.padded_channels = padded_channels;
  backend.prepare_rows(rows);
  return result;
}

Intervals intervals_of(const at::Tensor& labels, const at::Tensor& sorted_labels) {
  const at::Tensor wide = labels.to(at::kLong).contiguous();
  Intervals intervals;
  intervals.begin = at::searchsorted(sorted_labels, wide);
  intervals.end = at::searchsorted(sorted_labels, wide, /*out_int32=*/false, /*right=*/true);
  return intervals;
}

namespace {

const int64_t* indices(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr<int64_t>() : nullptr;
}

const void* numbers(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr() : nullptr;
}

}  // namespace

Answer run(const Question& question) {
  const at::Tensor& first = question.features[0];
  const int64_t anchors = first.size(0);
  const bool is_double = first.scalar_type() == at::kDouble;
  Answer answer;
  answer.values = at::empty({anchors}, first.options().dtype(is_double ? at::kDouble : at::kFloat));
  answer.gradients =
      at::empty({question.with_gradient ? anchors : 0, first.size(1)}, answer.values.options());

  ContrastiveProblem problem{};
  problem.objective = question.objective;
  at::Tensor views[2];
  for (int view = 0; view < 2; ++view) {
    if (!question.features[view].defined()) continue;
    views[view] = with_contiguous_channels(question.features[view]);
    problem.features[view] = views[view].const_data_ptr();
    problem.row_strides[view] = views[view].stride(0);
  }
  problem.feature_dtype = kernel_type(first.scalar_type());
  problem.num_anchors = anchors;
  problem.channels = first.size(1);
  problem.direction = question.direction.const_data_ptr<int8_t>();
  const Prepared& negatives = question.negatives;
  problem.negatives = negatives.features.const_data_ptr();
  problem.negative_dtype = kernel_type(negatives.features.scalar_type());
  problem.num_negatives = negatives.features.size(0);
  problem.padded_channels = negatives.features.size(1);
  problem.num_valid = indices(negatives.num_valid);
  problem.same_class_begin = indices(question.intervals.begin);
  problem.same_class_end = indices(question.intervals.end);
  problem.interval_counts = question.intervals.count;
  problem.excluded = indices(question.intervals.excluded);
  problem.column_ids = indices(question.intervals.column_ids);
  problem.excluded_begin = indices(question.intervals.excluded_begin);
  problem.excluded_end = indices(question.intervals.excluded_end);
  problem.log_sums = numbers(question.log_sums);
  problem.column_log_sums = numbers(question.column_log_sums);
  problem.column_weights = numbers(question.column_weights);
  problem.temperature = question.temperature.value;
  problem.temperature_on_device = question.temperature.on_device.defined()
                                      ? question.temperature.on_device.const_data_ptr<double>()
                                      : nullptr;
  problem.normalize = question.normalize;
  problem.eps = question.eps;
  if (question.leading_rows.defined()) {
    problem.leading_rows = indices(question.leading_rows);
    problem.num_leading_rows = question.leading_rows.size(0);
  }
  problem.values = answer.values.mutable_data_ptr();
  problem.gradients = question.with_gradient ? answer.gradients.mutable_data_ptr() : nullptr;
  const bool with_statistics = question.with_gradient && question.with_statistics;
  answer.statistics = at::empty({4, with_statistics ? anchors : 0}, answer.values.options());
  if (with_statistics) {
    char* row = static_cast<char*>(answer.statistics.mutable_data_ptr());
    const int64_t bytes = anchors * static_cast<int64_t>(answer.statistics.element_size());
    problem.statistics = {row, row + bytes, row + 2 * bytes, row + 3 * bytes};
  }
  backend_for(first.device().type()).solve(problem);
  return answer;
}

}  // namespace cac
