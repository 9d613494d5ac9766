#include "ops/operators.h"

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
#include <limits>

#include "ops/backend.h"
#include "ops/checks.h"

namespace cac {
namespace {

// Number of negatives over which the authors' code takes the row maximum: its first chunk.
constexpr int64_t kMaxLeadingRows = 8000;
// Stands for the label of ignored negatives.
constexpr int64_t kIgnoredKey = std::numeric_limits<int64_t>::max();

at::Tensor with_contiguous_channels(const at::Tensor& features) {
  return features.stride(1) == 1 || features.size(1) == 1 ? features : features.contiguous();
}

// The tensors that prepare_negatives() returns.
struct Prepared {
  at::Tensor features;      // [N, Cp]
  at::Tensor labels;        // [N]
  at::Tensor leading_rows;  // [min(N, 8000)]; undefined for operators without eps
  at::Tensor num_valid;     // []
};

// [A] mask of the labels that count; undefined if all do.
at::Tensor not_ignored(const at::Tensor& labels, std::optional<int64_t> ignore_index) {
  return ignore_index.has_value() ? labels.to(at::kLong).ne(*ignore_index) : at::Tensor();
}

// [A] directions if the first view holds all anchors.
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

struct Options {
  Objective objective;
  double temperature;
  bool normalize;
  double eps;
  bool with_gradient;
};

// Values [A] and gradients [A, C] (or [0, C]) of the anchors. Pixel i has its anchor in
// features[direction[i] - 1], with the label anchor_labels[i].
std::tuple<at::Tensor, at::Tensor> run(const Options& options,
                                       const std::array<at::Tensor, 2>& features,
                                       const at::Tensor& direction, const at::Tensor& anchor_labels,
                                       const Prepared& negatives) {
  const at::Tensor& first = features[0];
  const bool is_double = first.scalar_type() == at::kDouble;
  at::Tensor values =
      at::empty({first.size(0)}, first.options().dtype(is_double ? at::kDouble : at::kFloat));
  at::Tensor gradients =
      at::empty({options.with_gradient ? first.size(0) : 0, first.size(1)}, values.options());
  const at::Tensor labels = anchor_labels.to(at::kLong).contiguous();
  const at::Tensor begin = at::searchsorted(negatives.labels, labels);
  const at::Tensor end = at::searchsorted(negatives.labels, labels, /*out_int32=*/false,
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
  problem.negatives = negatives.features.const_data_ptr();
  problem.negative_dtype = kernel_type(negatives.features.scalar_type());
  problem.num_negatives = negatives.features.size(0);
  problem.padded_channels = negatives.features.size(1);
  problem.num_valid = negatives.num_valid.const_data_ptr<int64_t>();
  problem.same_class_begin = begin.const_data_ptr<int64_t>();
  problem.same_class_end = end.const_data_ptr<int64_t>();
  problem.temperature = options.temperature;
  problem.normalize = options.normalize;
  problem.eps = options.eps;
  if (negatives.leading_rows.defined()) {
    problem.leading_rows = negatives.leading_rows.const_data_ptr<int64_t>();
    problem.num_leading_rows = negatives.leading_rows.size(0);
  }
  problem.values = values.mutable_data_ptr();
  problem.gradients = options.with_gradient ? gradients.mutable_data_ptr() : nullptr;
  backend_for(first.device().type()).solve(problem);
  return {values, gradients};
}

}  // namespace

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> prepare_negatives(
    const at::Tensor& negatives, const at::Tensor& negative_labels, bool normalize,
    std::optional<int64_t> ignore_index) {
  check_features(negatives, "negatives", -1, -1);
  check_labels(negative_labels, "negative_labels", negatives.size(0), negatives);
  const Backend& backend = backend_for(negatives.device().type());
  backend.check_finite(negatives, "negatives");

  // Ignored negatives come last, because no label is larger than their key.
  at::Tensor keys = negative_labels.to(at::kLong);
  const at::Tensor counted = not_ignored(negative_labels, ignore_index);
  at::Tensor num_valid;
  if (counted.defined()) {
    TORCH_CHECK_VALUE(
        !backend.reads_values() || !keys.eq(kIgnoredKey).logical_and_(counted).any().item<bool>(),
        "negative_labels must be below 2^63 - 1 if ignore_index is given");
    keys = at::where(counted, keys, kIgnoredKey);
    num_valid = counted.sum();
  } else {
    num_valid = at::full({}, negatives.size(0), keys.options());
  }
  const auto [labels, order] = at::sort(keys, /*stable=*/true, /*dim=*/0, /*descending=*/false);
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
  if (counted.defined()) {
    // First the negatives that count, in the given order, then the ignored ones.
    rank = rank.index_select(0, std::get<1>(at::sort(counted.logical_not(), /*stable=*/true,
                                                     /*dim=*/0, /*descending=*/false)));
  }
  const at::Tensor leading_rows =
      rank.narrow(0, 0, std::min(kMaxLeadingRows, rank.size(0))).clone();
  return {features, labels, leading_rows, num_valid};
}

std::tuple<at::Tensor, at::Tensor> masked_logsumexp(
    const at::Tensor& anchors, const at::Tensor& negatives, const at::Tensor& anchor_labels,
    const at::Tensor& negative_labels, const at::Tensor& num_valid, double temperature,
    bool normalize, std::optional<int64_t> ignore_index, bool with_gradient) {
  check_features(anchors, "anchors", -1, -1);
  check_labels(anchor_labels, "anchor_labels", anchors.size(0), anchors);
  const Prepared prepared{negatives, negative_labels, {}, num_valid};
  check_prepared(negatives, negative_labels, {}, num_valid, anchors);
  check_temperature(temperature);
  backend_for(anchors.device().type()).check_finite(anchors, "anchors");

  const at::Tensor direction =
      all_first_to_second(anchors, {}, not_ignored(anchor_labels, ignore_index));
  return run({Objective::kLogSumExp, temperature, normalize, 0.0, with_gradient}, {anchors, {}},
             direction, anchor_labels, prepared);
}

std::tuple<at::Tensor, at::Tensor> masked_contrastive_loss(
    const at::Tensor& anchors, const at::Tensor& positives, const at::Tensor& negatives,
    const at::Tensor& anchor_labels, const at::Tensor& negative_labels,
    const at::Tensor& leading_rows, const at::Tensor& num_valid,
    const std::optional<at::Tensor>& active, double temperature, bool normalize, double eps,
    std::optional<int64_t> ignore_index, bool with_gradient) {
  check_features(anchors, "anchors", -1, -1);
  check_features(positives, "positives", anchors.size(0), anchors.size(1));
  check_alike(positives, "positives", anchors, "anchors");
  check_labels(anchor_labels, "anchor_labels", anchors.size(0), anchors);
  check_prepared(negatives, negative_labels, leading_rows, num_valid, anchors);
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

  const at::Tensor direction = all_first_to_second(anchors, active.value_or(at::Tensor()),
                                                   not_ignored(anchor_labels, ignore_index));
  return run({Objective::kContrastiveLoss, temperature, normalize, eps, with_gradient},
             {anchors, positives}, direction, anchor_labels,
             {negatives, negative_labels, leading_rows, num_valid});
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> directional_contrastive_loss(
    const at::Tensor& features1, const at::Tensor& features2, const at::Tensor& confidences1,
    const at::Tensor& confidences2, const at::Tensor& pseudo_labels1,
    const at::Tensor& pseudo_labels2, const at::Tensor& negatives,
    const at::Tensor& negative_labels, const at::Tensor& leading_rows, const at::Tensor& num_valid,
    double temperature, double confidence_threshold, bool normalize, double eps,
    std::optional<int64_t> ignore_index, bool with_gradient) {
  check_features(features1, "features1", -1, -1);
  check_features(features2, "features2", features1.size(0), features1.size(1));
  check_alike(features2, "features2", features1, "features1");
  const int64_t pixels = features1.size(0);
  check_confidences(confidences1, "confidences1", pixels, features1);
  check_confidences(confidences2, "confidences2", pixels, features1);
  check_labels(pseudo_labels1, "pseudo_labels1", pixels, features1);
  check_labels(pseudo_labels2, "pseudo_labels2", pixels, features1);
  check_prepared(negatives, negative_labels, leading_rows, num_valid, features1);
  check_temperature(temperature);
  check_confidence_threshold(confidence_threshold);
  check_eps(eps);
  const Backend& backend = backend_for(features1.device().type());
  backend.check_finite(features1, "features1");
  backend.check_finite(features2, "features2");

  // Paper Eq. 7: the less confident view holds the anchor, if the other is confident enough.
  at::Tensor first_to_second =
      confidences1.lt(confidences2).logical_and_(confidences2.gt(confidence_threshold));
  at::Tensor second_to_first =
      confidences2.lt(confidences1).logical_and_(confidences1.gt(confidence_threshold));
  if (ignore_index.has_value()) {
    first_to_second.logical_and_(not_ignored(pseudo_labels1, ignore_index));
    second_to_first.logical_and_(not_ignored(pseudo_labels2, ignore_index));
  }
  const at::Tensor direction = first_to_second.to(at::kChar)
                                   .mul_(kFirstToSecond)
                                   .add_(second_to_first.to(at::kChar), kSecondToFirst);  // [A]
  const at::Tensor anchor_labels =
      at::where(second_to_first, pseudo_labels2.to(at::kLong), pseudo_labels1.to(at::kLong));
  const auto [values, gradients] =
      run({Objective::kContrastiveLoss, temperature, normalize, eps, with_gradient},
          {features1, features2}, direction, anchor_labels,
          {negatives, negative_labels, leading_rows, num_valid});
  const at::Tensor zeros = at::zeros_like(values);
  const at::Tensor loss = at::stack(
      {at::where(first_to_second, values, zeros), at::where(second_to_first, values, zeros)});
  return {loss, gradients, direction};
}

}  // namespace cac
