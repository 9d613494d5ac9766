#include "ops/aten_backend.h"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>

#include <algorithm>
#include <limits>
#include <utility>

#include "kernels/row_math.h"
#include "ops/unit_rows.h"

namespace cac {
namespace {

// Elements of a block of the A x N matrix.
constexpr int64_t kBlockElements = int64_t{1} << 22;

// The tensor form of anchor_result (kernels/row_math.h); all [R, 1].
struct AnchorResults {
  at::Tensor value;
  at::Tensor weight_negatives;
  at::Tensor weight_positive;
};

AnchorResults anchor_results(Objective objective, const at::Tensor& log_sum,
                             const at::Tensor& positive, double eps, const at::Tensor& row_max) {
  if (objective == Objective::kLogSumExp) {
    return {log_sum, at::ones_like(log_sum), at::zeros_like(log_sum)};
  }
  if (eps == 0) {
    const at::Tensor margin = log_sum - positive;
    const at::Tensor weight = margin.sigmoid();
    return {margin.clamp_min(0) + margin.abs().neg().exp().log1p(), weight, weight};
  }
  const at::Tensor positive_exp = (positive - row_max).exp();
  const at::Tensor negative_exp = (log_sum - row_max).exp();
  const at::Tensor denominator = positive_exp + negative_exp + eps;
  const at::Tensor probability = positive_exp / denominator;
  const at::Tensor scale = probability / (probability + eps);
  // See anchor_result for the meaning of an infinite sum.
  const at::Tensor beyond = negative_exp.isinf();
  return {(probability + eps).log().neg(), at::where(beyond, 0, scale * negative_exp / denominator),
          at::where(beyond, 0, scale * (negative_exp + eps) / denominator)};
}

// log(1 + exp(x))
at::Tensor log1p_exp(const at::Tensor& x) { return x.clamp_min(0) + x.abs().neg().exp().log1p(); }

}  // namespace

UnitRows unit_rows(const at::Tensor& features, bool normalize) {
  if (!normalize) return {features, {}};
  // Scaled by the largest element, because squares could leave the range of the type.
  at::Tensor largest = features.abs().amax({1}, /*keepdim=*/true);
  largest = largest.masked_fill(largest.eq(0), 1);
  const at::Tensor scaled = features / largest;
  const at::Tensor rest = scaled.norm(2, {1}, /*keepdim=*/true);
  const at::Tensor norms = rest * largest;
  const at::Tensor unit = scaled / rest.masked_fill(rest.eq(0), 1);
  return {at::where(norms.le(kMinNorm), features / kMinNorm, unit), norms};
}

at::ScalarType AtenBackend::compute_type(at::ScalarType features) const {
  return features == at::kDouble ? at::kDouble : at::kFloat;
}

int64_t AtenBackend::channel_multiple(at::ScalarType) const { return 1; }

bool AtenBackend::multiplies(at::ScalarType) const { return true; }

bool AtenBackend::reads_values() const { return device_ == at::kCPU; }

void AtenBackend::check_finite(const at::Tensor&, const char*) const {}

at::Tensor AtenBackend::wrap(const void* pointer, at::IntArrayRef sizes, at::IntArrayRef strides,
                             at::ScalarType type) const {
  const auto options = at::TensorOptions().device(device_).dtype(type);
  if (std::find(sizes.begin(), sizes.end(), 0) != sizes.end()) return at::empty(sizes, options);
  return at::from_blob(const_cast<void*>(pointer), sizes, strides, options);
}

void AtenBackend::prepare_rows(const PrepareRows& rows) const {
  const at::Tensor source = wrap(rows.source, {rows.num_rows, rows.channels}, {rows.row_stride, 1},
                                 scalar_type(rows.source_dtype));
  const at::Tensor order = wrap(rows.order, {rows.num_rows}, {1}, at::kLong);
  const at::ScalarType type = scalar_type(rows.destination_dtype);
  at::Tensor destination = wrap(rows.destination, {rows.num_rows, rows.padded_channels},
                                {rows.padded_channels, 1}, type);
  const at::ScalarType wide = compute_type(source.scalar_type());
  const at::Tensor sorted = source.index_select(0, order).to(wide);
  destination.zero_();
  destination.narrow(1, 0, rows.channels).copy_(unit_rows(sorted, rows.normalize).rows);
}

// A problem as tensors.
struct AtenBackend::Tensors {
  at::Tensor view1, view2;                     // [A, C]
  at::Tensor direction, begin, end;            // [A]
  at::Tensor negatives;                        // [N, C]
  at::Tensor ignored;                          // [N] bool
  at::Tensor columns;                          // [N] their numbers
  at::Tensor excluded, column_ids;             // [A], [N]; excluded may be undefined
  at::Tensor leading_rows;                     // [L]
  at::Tensor log_sums;                         // [A], or undefined
  at::Tensor column_log_sums, column_weights;  // [N], or undefined
  at::Tensor values;                           // [A]
  at::Tensor gradients;                        // [A, C], or undefined
  at::Tensor log_sums_out, negative_weights, positive_weights, temperature_gradients;  // [A]
  at::Tensor inverse_temperature;  // []; undefined: the problem has it as a number
};

AtenBackend::Tensors AtenBackend::wrap(const ContrastiveProblem& problem) const {
  const int64_t num_anchors = problem.num_anchors;
  const int64_t num_negatives = problem.num_negatives;
  const int64_t channels = problem.channels;
  const at::ScalarType type = scalar_type(problem.feature_dtype);
  const at::ScalarType wide = compute_type(type);
  const auto optional = [&](const void* pointer, int64_t size, at::ScalarType of) {
    return pointer == nullptr ? at::Tensor() : wrap(pointer, {size}, {1}, of);
  };
  Tensors tensors;
  tensors.view1 =
      wrap(problem.features[0], {num_anchors, channels}, {problem.row_strides[0], 1}, type);
  if (problem.objective == Objective::kContrastiveLoss) {
    tensors.view2 =
        wrap(problem.features[1], {num_anchors, channels}, {problem.row_strides[1], 1}, type);
  }
  tensors.direction = wrap(problem.direction, {num_anchors}, {1}, at::kChar);
  tensors.begin = wrap(problem.same_class_begin, {num_anchors}, {1}, at::kLong);
  tensors.end = wrap(problem.same_class_end, {num_anchors}, {1}, at::kLong);
  tensors.negatives = wrap(problem.negatives, {num_negatives, channels},
                           {problem.padded_channels, 1}, scalar_type(problem.negative_dtype))
                          .to(wide);
  tensors.columns = at::arange(num_negatives, tensors.begin.options());
  if (problem.num_valid == nullptr) {
    tensors.ignored = at::zeros_like(tensors.columns, at::kBool);
  } else {
    tensors.ignored = tensors.columns.ge(wrap(problem.num_valid, {}, {}, at::kLong));
    // What does not count may hold anything, also what is not finite.
    tensors.negatives = tensors.negatives.masked_fill(tensors.ignored.unsqueeze(1), 0);
  }
  tensors.excluded = optional(problem.excluded, num_anchors, at::kLong);
  tensors.column_ids = problem.column_ids == nullptr
                           ? tensors.columns
                           : wrap(problem.column_ids, {num_negatives}, {1}, at::kLong);
  tensors.leading_rows = wrap(problem.leading_rows, {problem.num_leading_rows}, {1}, at::kLong);
  tensors.log_sums = optional(problem.log_sums, num_anchors, wide);
  tensors.column_log_sums = optional(problem.column_log_sums, num_negatives, wide);
  tensors.column_weights = optional(problem.column_weights, num_negatives, wide);
  tensors.values = wrap(problem.values, {num_anchors}, {1}, wide);
  if (problem.gradients != nullptr) {
    tensors.gradients = wrap(problem.gradients, {num_anchors, channels}, {channels, 1}, wide);
  }
  tensors.log_sums_out = optional(problem.statistics.log_sums, num_anchors, wide);
  tensors.negative_weights = optional(problem.statistics.negative_weights, num_anchors, wide);
  tensors.positive_weights = optional(problem.statistics.positive_weights, num_anchors, wide);
  tensors.temperature_gradients =
      optional(problem.statistics.temperature_gradients, num_anchors, wide);
  if (problem.temperature_on_device != nullptr) {
    tensors.inverse_temperature =
        wrap(problem.temperature_on_device, {}, {}, at::kDouble).reciprocal().to(wide);
  }
  return tensors;
}

void AtenBackend::solve(const ContrastiveProblem& problem) const {
  const Tensors tensors = wrap(problem);
  const int64_t block_anchors =
      std::max<int64_t>(1, kBlockElements / std::max<int64_t>(1, problem.num_negatives));
  for (int64_t first = 0; first < problem.num_anchors; first += block_anchors) {
    solve_block(problem, tensors, first, std::min(block_anchors, problem.num_anchors - first));
  }
}

void AtenBackend::solve_block(const ContrastiveProblem& problem, const Tensors& tensors,
                              int64_t first, int64_t count) const {
  constexpr double kMinusInfinity = -std::numeric_limits<double>::infinity();
  const at::ScalarType wide = compute_type(scalar_type(problem.feature_dtype));
  const auto block = [&](const at::Tensor& tensor) { return tensor.narrow(0, first, count); };
  const auto scaled = [&](const at::Tensor& tensor) {
    return tensors.inverse_temperature.defined() ? tensor * tensors.inverse_temperature
                                                 : tensor * (1.0 / problem.temperature);
  };
  const at::Tensor& negatives = tensors.negatives;
  const at::Tensor is_active = block(tensors.direction).ne(kInactive).unsqueeze(1);  // [R, 1]
  const auto write = [&](const at::Tensor& to, const at::Tensor& column) {
    if (to.defined()) block(to).copy_(at::where(is_active, column, 0).squeeze(1));
  };
  const bool has_positive = problem.objective == Objective::kContrastiveLoss;
  at::Tensor anchors = block(tensors.view1).to(wide);
  at::Tensor positives;
  if (has_positive) {
    const at::Tensor swapped = block(tensors.direction).eq(kSecondToFirst).unsqueeze(1);
    positives = block(tensors.view2).to(wide);
    std::tie(anchors, positives) =
        std::pair(at::where(swapped, positives, anchors), at::where(swapped, anchors, positives));
  }
  const UnitRows unit = unit_rows(anchors, problem.normalize);

  const at::Tensor logits = scaled(unit.rows.matmul(negatives.t()));  // [R, N]
  at::Tensor masked = tensors.columns.ge(block(tensors.begin).unsqueeze(1))
                          .logical_and_(tensors.columns.lt(block(tensors.end).unsqueeze(1)));
  if (problem.interval_counts) masked.logical_not_();
  masked.logical_or_(tensors.ignored);  // [R, N]
  if (tensors.excluded.defined()) {
    masked.logical_or_(tensors.column_ids.eq(block(tensors.excluded).unsqueeze(1)));
  }

  const auto finish = [&](const at::Tensor& gradient_of_unit) {  // [R, C]
    const at::Tensor along = (gradient_of_unit * unit.rows).sum(1, /*keepdim=*/true);
    write(tensors.temperature_gradients, scaled(along).neg());
    at::Tensor gradient = gradient_of_unit;
    if (problem.normalize) {
      // Chain through x / |x|: the projection onto the tangent plane, divided by |x|.
      const at::Tensor radial = along * unit.rows;
      gradient = at::where(unit.norms.gt(kMinNorm), (gradient - radial) / unit.norms, 0);
    }
    block(tensors.gradients).copy_(at::where(is_active, gradient, 0));
  };

  if (is_gradient_of_columns(problem.objective)) {
    const at::Tensor margin = tensors.column_log_sums - logits;  // [R, N]
    const at::Tensor slopes = problem.objective == Objective::kLogisticGradient
                                  ? margin.sigmoid()
                                  : margin.clamp_min(0).neg().exp();
    finish(scaled((slopes * tensors.column_weights).masked_fill(masked, 0).matmul(negatives)));
    return;
  }
  if (problem.objective == Objective::kMarginSum) {
    const at::Tensor margin = block(tensors.log_sums).unsqueeze(1) - logits;  // [R, N]
    write(tensors.values, log1p_exp(margin).masked_fill(masked, 0).sum(1, /*keepdim=*/true));
    if (!tensors.gradients.defined()) return;
    const at::Tensor slopes = margin.sigmoid().masked_fill(masked, 0);
    write(tensors.negative_weights, slopes.sum(1, /*keepdim=*/true));
    finish(scaled(slopes.matmul(negatives)).neg());
    return;
  }

  const at::Tensor counted = logits.masked_fill(masked, kMinusInfinity);
  const at::Tensor none = at::full({count, 1}, kMinusInfinity, counted.options());
  at::Tensor largest = at::cat({counted, none}, 1).amax({1}, /*keepdim=*/true);  // [R, 1]
  largest = largest.masked_fill(largest.eq(kMinusInfinity), 0);
  const at::Tensor exponentials = (counted - largest).exp();     // [R, N]
  const at::Tensor sum = exponentials.sum(1, /*keepdim=*/true);  // [R, 1]
  const at::Tensor log_sum = largest + sum.log();

  at::Tensor positive_logit = at::zeros_like(log_sum);
  UnitRows positive_unit;
  if (has_positive) {
    positive_unit = unit_rows(positives, problem.normalize);
    positive_logit = scaled((unit.rows * positive_unit.rows).sum(1, /*keepdim=*/true));
  }
  at::Tensor row_max;
  if (problem.eps > 0) {
    at::Tensor leading = logits.index_select(1, tensors.leading_rows);
    leading =
        leading.masked_fill(tensors.ignored.index_select(0, tensors.leading_rows), kMinusInfinity);
    row_max = at::cat({leading, positive_logit}, 1).amax({1}, /*keepdim=*/true);
  }
  const AnchorResults result =
      anchor_results(problem.objective, log_sum, positive_logit, problem.eps, row_max);
  write(tensors.values, result.value);
  if (!tensors.gradients.defined()) return;

  write(tensors.log_sums_out, log_sum);
  write(tensors.negative_weights, at::where(sum.eq(0), 0, result.weight_negatives));
  write(tensors.positive_weights, result.weight_positive);
  const at::Tensor mean = exponentials.matmul(negatives) / sum;  // [R, C]
  at::Tensor gradient = at::where(sum.eq(0), 0, result.weight_negatives * mean);
  if (has_positive) gradient = gradient - result.weight_positive * positive_unit.rows;
  finish(scaled(gradient));
}

}  // namespace cac
