#include "ops/operators.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/sort.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <array>

#include "ops/backend.h"
#include "ops/checks.h"
#include "ops/run.h"

namespace cac {
namespace {

// Number of negatives over which the authors' code takes the row maximum: its first chunk.
constexpr int64_t kMaxLeadingRows = 8000;

struct Options {
  Objective objective;
  double temperature;
  bool normalize;
  double eps;
  bool with_gradient;
};

// Negatives as prepare_negatives() returns them.
struct Negatives {
  Prepared prepared;        // without its order
  at::Tensor leading_rows;  // [min(N, 8000)]; undefined for operators without eps
};

// Values [A] and gradients [A, C] (or [0, C]) of the anchors. Pixel i has its anchor in
// features[direction[i] - 1], with the label anchor_labels[i].
std::tuple<at::Tensor, at::Tensor> solve(const Options& options,
                                         const std::array<at::Tensor, 2>& features,
                                         const at::Tensor& direction,
                                         const at::Tensor& anchor_labels,
                                         const Negatives& negatives) {
  Question question{};
  question.objective = options.objective;
  question.temperature.value = options.temperature;
  question.normalize = options.normalize;
  question.eps = options.eps;
  question.with_gradient = options.with_gradient;
  question.features = features;
  question.direction = direction;
  question.intervals = intervals_of(anchor_labels, negatives.prepared.labels);
  question.negatives = negatives.prepared;
  question.leading_rows = negatives.leading_rows;
  const Answer answer = run(question);
  return {answer.values, answer.gradients};
}

}  // namespace

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> prepare_negatives(
    const at::Tensor& negatives, const at::Tensor& negative_labels, bool normalize,
    std::optional<int64_t> ignore_index) {
  auto [features, labels, leading_rows, num_valid, rank] =
      prepare_keys(negatives, negative_labels, std::nullopt, normalize, ignore_index);
  return {features, labels, leading_rows, num_valid};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> prepare_keys(
    const at::Tensor& keys, const std::optional<at::Tensor>& labels,
    const std::optional<at::Tensor>& length, bool normalize, std::optional<int64_t> ignore_index) {
  check_features(keys, "negatives", -1, -1);
  const int64_t rows = keys.size(0);
  const at::Tensor given_labels =
      labels.has_value() ? *labels : at::zeros({rows}, keys.options().dtype(at::kLong));
  check_labels(given_labels, "negative_labels", rows, keys);
  const Backend& backend = backend_for(keys.device().type());
  at::Tensor counted = not_ignored(given_labels, ignore_index);
  if (length.has_value()) {
    check_length(*length, rows, keys);
    const at::Tensor in_use = at::arange(rows, given_labels.options().dtype(at::kLong)).lt(*length);
    counted = counted.defined() ? counted.logical_and(in_use) : in_use;
  }
  // Rows that are not in use yet may hold anything.
  const bool may_be_short = length.has_value() && backend.reads_values();
  backend.check_finite(may_be_short ? keys.narrow(0, 0, length->item<int64_t>()) : keys,
                       "negatives");
  if (counted.defined()) check_labels_below_ignored(given_labels, "negative_labels", counted);
  const Prepared prepared = prepare(keys, given_labels, counted, normalize);

  at::Tensor rank = at::empty_like(prepared.order);
  rank.scatter_(0, prepared.order, at::arange(rows, prepared.order.options()));
  at::Tensor given_order = rank;
  if (counted.defined()) {
    // First the negatives that count, in the given order, then the others.
    given_order = rank.index_select(0, std::get<1>(at::sort(counted.logical_not(), /*stable=*/true,
                                                            /*dim=*/0, /*descending=*/false)));
  }
  const at::Tensor leading_rows = given_order.narrow(0, 0, std::min(kMaxLeadingRows, rows)).clone();
  return {prepared.features, prepared.labels, leading_rows, prepared.num_valid, rank};
}

std::tuple<at::Tensor, at::Tensor> masked_logsumexp(
    const at::Tensor& anchors, const at::Tensor& negatives, const at::Tensor& anchor_labels,
    const at::Tensor& negative_labels, const at::Tensor& num_valid, double temperature,
    bool normalize, std::optional<int64_t> ignore_index, bool with_gradient) {
  check_features(anchors, "anchors", -1, -1);
  check_labels(anchor_labels, "anchor_labels", anchors.size(0), anchors);
  check_prepared(negatives, negative_labels, {}, num_valid, anchors);
  check_temperature(temperature);
  backend_for(anchors.device().type()).check_finite(anchors, "anchors");

  const at::Tensor direction =
      all_first_to_second(anchors, {}, not_ignored(anchor_labels, ignore_index));
  return solve({Objective::kLogSumExp, temperature, normalize, 0.0, with_gradient}, {anchors, {}},
               direction, anchor_labels, {{negatives, negative_labels, num_valid, {}}, {}});
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
  check_active(active, anchors);
  const Backend& backend = backend_for(anchors.device().type());
  backend.check_finite(anchors, "anchors");
  backend.check_finite(positives, "positives");

  const at::Tensor direction = all_first_to_second(anchors, active.value_or(at::Tensor()),
                                                   not_ignored(anchor_labels, ignore_index));
  return solve({Objective::kContrastiveLoss, temperature, normalize, eps, with_gradient},
               {anchors, positives}, direction, anchor_labels,
               {{negatives, negative_labels, num_valid, {}}, leading_rows});
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
  static_assert(kFirstToSecond == 1, "a bool is a direction");
  const at::Tensor direction =
      first_to_second.to(at::kChar).add_(second_to_first, kSecondToFirst);  // [A]
  const at::Tensor anchor_labels =
      at::where(second_to_first, pseudo_labels2.to(at::kLong), pseudo_labels1.to(at::kLong));
  const auto [values, gradients] =
      solve({Objective::kContrastiveLoss, temperature, normalize, eps, with_gradient},
            {features1, features2}, direction, anchor_labels,
            {{negatives, negative_labels, num_valid, {}}, leading_rows});
  const at::Tensor loss = at::where(at::stack({first_to_second, second_to_first}), values,
                                    at::zeros({}, values.options()));
  return {loss, gradients, direction};
}

}  // namespace cac
