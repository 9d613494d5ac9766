#include "ops/contrastive.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/full.h>
#include <ATen/ops/searchsorted.h>
#include <ATen/ops/sort.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <array>

#include "ops/backend.h"
#include "ops/checks.h"

namespace cac {
namespace {

// Chunk of negatives over which the authors' code takes the row maximum.
constexpr int64_t kLeadingChunk = 8000;

at::Tensor with_contiguous_channels(const at::Tensor& features) {
  return features.stride(1) == 1 || features.size(1) == 1 ? features : features.contiguous();
}

struct Options {
  Objective objective;
  double temperature;
  bool normalize;
  double eps;
  bool with_gradient;
};

// Values [A] and gradients [A, C] (or [0, C]) of the anchors, features[direction[i] - 1] for pixel
// i, whose labels are anchor_labels[i].
std::tuple<at::Tensor, at::Tensor> run(const Options& options,
                                       const std::array<at::Tensor, 2>& features,
                                       const at::Tensor& direction, const at::Tensor& anchor_labels,
                                       const at::Tensor& negatives,
                                       const at::Tensor& negative_labels,
                                       const at::Tensor& leading_rows) {
  const at::Tensor& first = features[0];
  const bool is_double = first.scalar_type() == at::kDouble;
  at::Tensor values =
      at::empty({first.size(0)}, first.options().dtype(is_double ? at::kDouble : at::kFloat));
  at::Tensor gradients =
      at::empty({options.with_gradient ? first.size(0) : 0, first.size(1)}, first.options());
  const at::Tensor labels = anchor_labels.to(at::kLong).contiguous();
  const at::Tensor begin = at::searchsorted(negative_labels, labels);
  const at::Tensor end = at::searchsorted(negative_labels, labels, /*out_int32=*/false,
                                          /*right=*/true);

  ContrastiveProblem problem{};
  problem.objective = options.objective;
  at::Tensor views[2];
  for (int view = 0; view < 2; ++view) {
    if (!features[view].defined()) continue;
    views[view] = with_contiguous_channels(features[view]);
    problem.features[view] = views[view].const_data_ptr();
    problem.row_strides[view] = views[view].stride(0);
  }
  problem.feature_dtype = kernel_type(first.scalar_type());
  problem.num_anchors = first.size(0);
  problem.channels = first.size(1);
  problem.direction = direction.const_data_ptr<int8_t>();
  problem.negatives = negatives.const_data_ptr();
  problem.negative_dtype = kernel_type(negatives.scalar_type());
  problem.num_negatives = negatives.size(0);
  problem.padded_channels = negatives.size(1);
  problem.same_class_begin = begin.const_data_ptr<int64_t>();
  problem.same_class_end = end.const_data_ptr<int64_t>();
  problem.temperature = options.temperature;
  problem.normalize = options.normalize;
  problem.eps = options.eps;
  problem.leading_rows = leading_rows.defined() ? leading_rows.const_data_ptr<int64_t>() : nullptr;
  problem.num_leading_rows = leading_rows.defined() ? leading_rows.size(0) : 0;
  problem.values = values.mutable_data_ptr();
  problem.gradients = options.with_gradient ? gradients.mutable_data_ptr() : nullptr;
  backend_for(first.device().type()).contrastive(problem);
  return {values, gradients};
}

}  // namespace

std::tuple<at::Tensor, at::Tensor, at::Tensor> prepare_negatives(const at::Tensor& negatives,
                                                                 const at::Tensor& negative_labels,
                                                                 bool normalize) {
  check_features(negatives, "negatives", -1, -1);
  check_labels(negative_labels, "negative_labels", negatives.size(0), negatives);
  const Backend& backend = backend_for(negatives.device().type());
  backend.check_finite(negatives, "negatives");

  const auto [labels, order] = at::sort(negative_labels.to(at::kLong), /*stable=*/true,
                                        /*dim=*/0, /*descending=*/false);
  const at::ScalarType type = backend.compute_type(negatives.scalar_type());
  const int64_t multiple = backend.channel_multiple(type);
  const int64_t padded_channels = (negatives.size(1) + multiple - 1) / multiple * multiple;
  at::Tensor features =
      at::empty({negatives.size(0), padded_channels}, negatives.options().dtype(type));
  const at::Tensor source = with_contiguous_channels(negatives);

  PrepareRows rows{};
  rows.source = source.const_data_ptr();
  rows.row_stride = source.stride(0);
  rows.source_dtype = kernel_type(source.scalar_type());
  rows.order = order.const_data_ptr<int64_t>();
  rows.num_rows = source.size(0);
  rows.channels = source.size(1);
  rows.normalize = normalize;
  rows.destination = features.mutable_data_ptr();
  rows.destination_dtype = kernel_type(type);
  rows.padded_channels = padded_channels;
  backend.prepare_rows(rows);

  at::Tensor rank = at::empty_like(order);
  rank.scatter_(0, order, at::arange(order.size(0), order.options()));
  const at::Tensor leading_rows = rank.narrow(0, 0, std::min(kLeadingChunk, rank.size(0))).clone();
  return {features, labels, leading_rows};
}

std::tuple<at::Tensor, at::Tensor> masked_logsumexp(
    const at::Tensor& anchors, const at::Tensor& negatives, const at::Tensor& anchor_labels,
    const at::Tensor& negative_labels, double temperature, bool normalize, bool with_gradient) {
  check_features(anchors, "anchors", -1, -1);
  check_labels(anchor_labels, "anchor_labels", anchors.size(0), anchors);
  const at::Tensor no_leading_rows = at::empty({0}, negative_labels.options());
  check_prepared(negatives, negative_labels, no_leading_rows, anchors);
  check_temperature(temperature);
  backend_for(anchors.device().type()).check_finite(anchors, "anchors");

  const at::Tensor direction =
      at::full({anchors.size(0)}, kTowards2, anchors.options().dtype(at::kChar));
  return run({Objective::kLogSumExp, temperature, normalize, 0.0, with_gradient}, {anchors, {}},
             direction, anchor_labels, negatives, negative_labels, {});
}

std::tuple<at::Tensor, at::Tensor> masked_contrastive_loss(
    const at::Tensor& anchors, const at::Tensor& positives, const at::Tensor& negatives,
    const at::Tensor& anchor_labels, const at::Tensor& negative_labels,
    const at::Tensor& leading_rows, const std::optional<at::Tensor>& active, double temperature,
    bool normalize, double eps, bool with_gradient) {
  check_features(anchors, "anchors", -1, -1);
  check_features(positives, "positives", anchors.size(0), anchors.size(1));
  check_alike(positives, "positives", anchors, "anchors");
  check_labels(anchor_labels, "anchor_labels", anchors.size(0), anchors);
  check_prepared(negatives, negative_labels, leading_rows, anchors);
  check_temperature(temperature);
  check_eps(eps);
  if (active.has_value()) {
    TORCH_CHECK_VALUE(active->dim() == 1 && active->size(0) == anchors.size(0),
                      "active must have shape [", anchors.size(0),
                      "], one flag for each anchor, but got ", active->sizes());
    TORCH_CHECK_TYPE(active->scalar_type() == at::kBool, "active must be bool, but got ",
                     active->scalar_type());
    TORCH_CHECK_VALUE(active->device() == anchors.device(), "active must be on ", anchors.device(),
                      " like the anchors, but is on ", active->device());
  }
  const Backend& backend = backend_for(anchors.device().type());
  backend.check_finite(anchors, "anchors");
  backend.check_finite(positives, "positives");

  static_assert(kInactive == 0 && kTowards2 == 1, "a bool is a direction");
  const at::Tensor direction = active.has_value() ? active->to(at::kChar).contiguous()
                                                  : at::full({anchors.size(0)}, kTowards2,
                                                             anchors.options().dtype(at::kChar));
  return run({Objective::kContrastiveLoss, temperature, normalize, eps, with_gradient},
             {anchors, positives}, direction, anchor_labels, negatives, negative_labels,
             leading_rows);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> directional_contrastive_loss(
    const at::Tensor& features1, const at::Tensor& features2, const at::Tensor& confidences1,
    const at::Tensor& confidences2, const at::Tensor& pseudo_labels1,
    const at::Tensor& pseudo_labels2, const at::Tensor& negatives,
    const at::Tensor& negative_labels, const at::Tensor& leading_rows, double temperature,
    double confidence_threshold, bool normalize, double eps, bool with_gradient) {
  check_features(features1, "features1", -1, -1);
  check_features(features2, "features2", features1.size(0), features1.size(1));
  check_alike(features2, "features2", features1, "features1");
  const int64_t pixels = features1.size(0);
  check_confidences(confidences1, "confidences1", pixels, features1);
  check_confidences(confidences2, "confidences2", pixels, features1);
  check_labels(pseudo_labels1, "pseudo_labels1", pixels, features1);
  check_labels(pseudo_labels2, "pseudo_labels2", pixels, features1);
  check_prepared(negatives, negative_labels, leading_rows, features1);
  check_temperature(temperature);
  check_eps(eps);
  const Backend& backend = backend_for(features1.device().type());
  backend.check_finite(features1, "features1");
  backend.check_finite(features2, "features2");

  // Paper Eq. 7: the less confident view is the anchor, if the other is confident enough.
  const at::Tensor towards2 =
      confidences1.lt(confidences2).logical_and_(confidences2.gt(confidence_threshold));
  const at::Tensor towards1 =
      confidences2.lt(confidences1).logical_and_(confidences1.gt(confidence_threshold));
  const at::Tensor direction =
      towards2.to(at::kChar).mul_(kTowards2).add_(towards1.to(at::kChar), kTowards1);  // [A]
  const at::Tensor anchor_labels =
      at::where(towards1, pseudo_labels2.to(at::kLong), pseudo_labels1.to(at::kLong));
  const auto [values, gradients] = run(
      {Objective::kContrastiveLoss, temperature, normalize, eps, with_gradient},
      {features1, features2}, direction, anchor_labels, negatives, negative_labels, leading_rows);
  const at::Tensor zeros = at::zeros_like(values);
  const at::Tensor loss =
      at::stack({at::where(towards2, values, zeros), at::where(towards1, values, zeros)});
  return {loss, gradients, direction};
}

}  // namespace cac
