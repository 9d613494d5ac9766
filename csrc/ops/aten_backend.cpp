#include "ops/aten_backend.h"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>

#include <algorithm>
#include <limits>
#include <utility>

#include "kernels/row_math.h"

namespace cac {
namespace {

// Elements of a block of the A x N matrix.
constexpr int64_t kBlockElements = int64_t{1} << 22;

at::ScalarType scalar_type(DType type) {
  switch (type) {
    case DType::kFloat64:
      return at::kDouble;
    case DType::kFloat32:
      return at::kFloat;
    case DType::kBFloat16:
      return at::kBFloat16;
    case DType::kFloat16:
      return at::kHalf;
  }
  TORCH_INTERNAL_ASSERT(false, "unknown type");
}

struct UnitRows {
  at::Tensor rows;   // [R, C]
  at::Tensor norms;  // [R, 1] lengths before; undefined without normalization
};

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

}  // namespace

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

void AtenBackend::solve(const ContrastiveProblem& problem) const {
  const int64_t num_anchors = problem.num_anchors;
  const int64_t num_negatives = problem.num_negatives;
  const int64_t channels = problem.channels;
  const at::ScalarType type = scalar_type(problem.feature_dtype);
  const at::ScalarType wide = compute_type(type);
  const bool has_positive = problem.objective == Objective::kContrastiveLoss;
  const bool wants_gradient = problem.gradients != nullptr;

  const at::Tensor view1 =
      wrap(problem.features[0], {num_anchors, channels}, {problem.row_strides[0], 1}, type);
  const at::Tensor view2 = has_positive ? wrap(problem.features[1], {num_anchors, channels},
                                               {problem.row_strides[1], 1}, type)
                                        : at::Tensor();
  const at::Tensor direction = wrap(problem.direction, {num_anchors}, {1}, at::kChar);
  const at::Tensor begin = wrap(problem.same_class_begin, {num_anchors}, {1}, at::kLong);
  const at::Tensor end = wrap(problem.same_class_end, {num_anchors}, {1}, at::kLong);
  const at::Tensor negatives =
      wrap(problem.negatives, {num_negatives, channels}, {problem.padded_channels, 1},
           scalar_type(problem.negative_dtype))
          .to(wide);
  const at::Tensor leading_rows =
      wrap(problem.leading_rows, {problem.num_leading_rows}, {1}, at::kLong);
  const at::Tensor values = wrap(problem.values, {num_anchors}, {1}, wide);
  const at::Tensor gradients =
      wants_gradient ? wrap(problem.gradients, {num_anchors, channels}, {channels, 1}, wide)
                     : at::Tensor();
  const at::Tensor columns = at::arange(num_negatives, begin.options());
  const double scale = 1.0 / problem.temperature;
  const at::Tensor num_valid =
      problem.num_valid == nullptr ? at::Tensor() : wrap(problem.num_valid, {}, {}, at::kLong);
  const at::Tensor ignored =
      num_valid.defined() ? columns.ge(num_valid) : at::zeros_like(columns, at::kBool);  // [N]

  const int64_t block_anchors =
      std::max<int64_t>(1, kBlockElements / std::max<int64_t>(1, num_negatives));
  for (int64_t first = 0; first < num_anchors; first += block_anchors) {
    const int64_t count = std::min(block_anchors, num_anchors - first);  // R
    const auto block = [&](const at::Tensor& tensor) { return tensor.narrow(0, first, count); };
    const at::Tensor is_active = block(direction).ne(kInactive).unsqueeze(1);  // [R, 1]
    at::Tensor anchors = block(view1).to(wide);
    at::Tensor positives;
    if (has_positive) {
      const at::Tensor swapped = block(direction).eq(kSecondToFirst).unsqueeze(1);
      positives = block(view2).to(wide);
      std::tie(anchors, positives) =
          std::pair(at::where(swapped, positives, anchors), at::where(swapped, anchors, positives));
    }
    const UnitRows unit = unit_rows(anchors, problem.normalize);

    const at::Tensor logits = unit.rows.matmul(negatives.t()) * scale;  // [R, N]
    const at::Tensor same_class = columns.ge(block(begin).unsqueeze(1))
                                      .logical_and_(columns.lt(block(end).unsqueeze(1)))
                                      .logical_or_(ignored);  // [R, N]
    constexpr double kMinusInfinity = -std::numeric_limits<double>::infinity();
    const at::Tensor masked = logits.masked_fill(same_class, kMinusInfinity);
    const at::Tensor none = at::full({count, 1}, kMinusInfinity, masked.options());
    at::Tensor largest = at::cat({masked, none}, 1).amax({1}, /*keepdim=*/true);  // [R, 1]
    largest = largest.masked_fill(largest.eq(kMinusInfinity), 0);
    const at::Tensor exponentials = (masked - largest).exp();      // [R, N]
    const at::Tensor sum = exponentials.sum(1, /*keepdim=*/true);  // [R, 1]
    const at::Tensor log_sum = largest + sum.log();

    at::Tensor positive_logit = at::zeros_like(log_sum);
    UnitRows positive_unit;
    if (has_positive) {
      positive_unit = unit_rows(positives, problem.normalize);
      positive_logit = (unit.rows * positive_unit.rows).sum(1, /*keepdim=*/true) * scale;
    }
    at::Tensor row_max;
    if (problem.eps > 0) {
      at::Tensor leading = logits.index_select(1, leading_rows);
      leading = leading.masked_fill(ignored.index_select(0, leading_rows), kMinusInfinity);
      row_max = at::cat({leading, positive_logit}, 1).amax({1}, /*keepdim=*/true);
    }
    const AnchorResults result =
        anchor_results(problem.objective, log_sum, positive_logit, problem.eps, row_max);
    block(values).copy_(at::where(is_active, result.value, 0).squeeze(1));
    if (!wants_gradient) continue;

    const at::Tensor mean = exponentials.matmul(negatives) / sum;  // [R, C]
    at::Tensor gradient = at::where(sum.eq(0), 0, result.weight_negatives * mean);
    if (has_positive) gradient = gradient - result.weight_positive * positive_unit.rows;
    gradient = gradient * scale;
    if (problem.normalize) {
      // Chain through x / |x|: the projection onto the tangent plane, divided by |x|.
      const at::Tensor radial = (gradient * unit.rows).sum(1, /*keepdim=*/true) * unit.rows;
      gradient = at::where(unit.norms.gt(kMinNorm), (gradient - radial) / unit.norms, 0);
    }
    block(gradients).copy_(at::where(is_active, gradient, 0));
  }
}

}  // namespace cac
