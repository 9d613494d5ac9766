// The operators of the whole family of losses: any mask, an excluded negative for each anchor, and
// the gradients of positives and negatives.
#include <ATen/ExpandUtils.h>
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/full.h>
#include <ATen/ops/index_put.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <vector>

#include "kernels/row_math.h"
#include "ops/backend.h"
#include "ops/checks.h"
#include "ops/operators.h"
#include "ops/run.h"
#include "ops/unit_rows.h"

namespace cac {
namespace {

enum class Mask { kDifferent, kSame, kAll };

Mask parse_mask(c10::string_view name) {
  if (name == "different") return Mask::kDifferent;
  if (name == "same") return Mask::kSame;
  TORCH_CHECK_VALUE(name == "all", "mask must be 'different', 'same' or 'all', but got '", name,
                    "'");
  return Mask::kAll;
}

Temperature read_temperature(const at::Tensor& temperature, const at::Tensor& features) {
  TORCH_CHECK_VALUE(temperature.dim() == 0,
                    "temperature must be a number or a tensor of one number, but got shape ",
                    temperature.sizes());
  TORCH_CHECK_TYPE(at::isFloatingType(temperature.scalar_type()),
                   "temperature must be floating point, but got ", temperature.scalar_type());
  if (temperature.is_cpu()) {
    const double value = temperature.item<double>();
    check_temperature(value);
    return {value, {}};
  }
  TORCH_CHECK_VALUE(temperature.device() == features.device(), "temperature must be on ",
                    features.device(), " like the features, or on the CPU, but is on ",
                    temperature.device());
  return {0.0, temperature.to(at::kDouble)};
}

const at::Tensor& required_labels(const std::optional<at::Tensor>& labels, Mask mask) {
  static const at::Tensor none;
  TORCH_CHECK_VALUE(labels.has_value() || mask == Mask::kAll,
                    "anchor_labels are missing: only mask='all' compares no labels");
  return labels.has_value() ? *labels : none;
}

// Intervals [A] of rows with these labels among sorted columns.
Intervals intervals_for(Mask mask, const at::Tensor& labels, const at::Tensor& sorted_labels,
                        const at::Tensor& features) {
  Intervals intervals;
  if (mask == Mask::kAll) {
    intervals.begin = at::zeros({features.size(0)}, sorted_labels.options());
    intervals.end = intervals.begin;
    return intervals;
  }
  intervals = intervals_of(labels, sorted_labels);
  intervals.count = mask == Mask::kSame;
  return intervals;
}

// The excluded rows as places among the sorted ones; undefined if nothing is excluded.
at::Tensor excluded_places(const std::optional<at::Tensor>& exclude,
                           const std::optional<at::Tensor>& rank, const at::Tensor& anchors) {
  if (!exclude.has_value()) return {};
  TORCH_CHECK_VALUE(rank.has_value(), "exclude needs the rank of the negatives");
  const int64_t rows = rank->size(0);
  check_exclude(*exclude, anchors, rows);
  if (rows == 0) return {};
  return at::where(exclude->ge(0), rank->index_select(0, exclude->clamp_min(0)), -1);
}

void check_rank(const std::optional<at::Tensor>& rank, const at::Tensor& negatives) {
  if (!rank.has_value()) return;
  const int64_t rows = negatives.size(0);
  TORCH_CHECK_VALUE(rank->dim() == 1 && rank->size(0) == rows && rank->is_contiguous() &&
                        rank->scalar_type() == at::kLong && rank->device() == negatives.device(),
                    "rank of prepared negatives must be a contiguous int64 tensor [", rows, "] on ",
                    negatives.device(), ", but has shape ", rank->sizes(), " and type ",
                    rank->scalar_type());
  if (!backend_for(negatives.device().type()).reads_values() || rows == 0) return;
  TORCH_CHECK_VALUE(rank->min().item<int64_t>() >= 0 && rank->max().item<int64_t>() < rows,
                    "rank of prepared negatives must hold rows below ", rows);
}

void check_row_numbers(const at::Tensor& numbers, const char* name, const at::Tensor& anchors) {
  const auto type = anchors.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  TORCH_CHECK_VALUE(numbers.dim() == 1 && numbers.size(0) == anchors.size(0) &&
                        numbers.scalar_type() == type && numbers.device() == anchors.device(),
                    name, " must be ", type, " [", anchors.size(0), "] on ", anchors.device(),
                    ", but has shape ", numbers.sizes(), " and type ", numbers.scalar_type());
}

at::Tensor counted_labels(const std::optional<at::Tensor>& labels,
                          std::optional<int64_t> ignore_index) {
  return labels.has_value() ? not_ignored(*labels, ignore_index) : at::Tensor();
}

// Row k does not meet the columns with the id k.
void exclude_columns(Intervals& intervals, const at::Tensor& column_ids, int64_t rows) {
  intervals.excluded = at::arange(rows, column_ids.options());
  intervals.column_ids = column_ids;
  const int64_t columns = column_ids.size(0);
  const at::Tensor places = at::arange(columns, column_ids.options());
  const at::Tensor ids = at::where(column_ids.ge(0), column_ids, rows);  // the last one: none
  intervals.excluded_begin =
      at::full({rows + 1}, columns, ids.options()).scatter_reduce_(0, ids, places, "amin");
  intervals.excluded_end =
      at::zeros({rows + 1}, ids.options()).scatter_reduce_(0, ids, places + 1, "amax");
}

Question question_of(const at::Tensor& anchors, const Temperature& temperature, bool normalize,
                     bool with_gradient) {
  Question question{};
  question.temperature = temperature;
  question.normalize = normalize;
  question.with_gradient = with_gradient;
  question.with_statistics = true;
  question.features[0] = anchors;
  return question;
}

}  // namespace

std::tuple<at::Tensor, at::Tensor, at::Tensor> contrast(
    const at::Tensor& anchors, const std::optional<at::Tensor>& positives,
    const std::optional<at::Tensor>& keys, const at::Tensor& temperature,
    const std::optional<at::Tensor>& anchor_labels, const std::optional<at::Tensor>& active,
    const std::optional<at::Tensor>& exclude, const at::Tensor& negatives,
    const at::Tensor& negative_labels, const std::optional<at::Tensor>& rank,
    const at::Tensor& leading_rows, const at::Tensor& num_valid, c10::string_view mask_name,
    bool normalize, double eps, std::optional<int64_t> ignore_index, bool with_gradient) {
  const Mask mask = parse_mask(mask_name);
  const at::Tensor& labels = required_labels(anchor_labels, mask);
  check_features(anchors, "anchors", -1, -1);
  if (labels.defined()) check_labels(labels, "anchor_labels", anchors.size(0), anchors);
  check_prepared(negatives, negative_labels, leading_rows, num_valid, anchors);
  check_rank(rank, negatives);
  check_eps(eps);
  check_active(active, anchors);
  const Backend& backend = backend_for(anchors.device().type());
  backend.check_finite(anchors, "anchors");
  if (positives.has_value()) {
    check_features(*positives, "positives", anchors.size(0), anchors.size(1));
    check_alike(*positives, "positives", anchors, "anchors");
    backend.check_finite(*positives, "positives");
  }

  Question question =
      question_of(anchors, read_temperature(temperature, anchors), normalize, with_gradient);
  question.objective = positives.has_value() ? Objective::kContrastiveLoss : Objective::kLogSumExp;
  question.eps = positives.has_value() ? eps : 0.0;
  if (positives.has_value()) question.features[1] = *positives;
  question.direction = all_first_to_second(anchors, active.value_or(at::Tensor()),
                                           counted_labels(anchor_labels, ignore_index));
  question.intervals = intervals_for(mask, labels, negative_labels, anchors);
  question.intervals.excluded = excluded_places(exclude, rank, anchors);
  question.negatives = {negatives, negative_labels, num_valid, {}};
  question.leading_rows = leading_rows;
  const Answer answer = run(question);
  return {answer.values, answer.gradients, answer.statistics};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> pairwise_contrast(
    const at::Tensor& anchors, const std::optional<at::Tensor>& keys, const at::Tensor& temperature,
    const at::Tensor& anchor_labels, const std::optional<at::Tensor>& active,
    const std::optional<at::Tensor>& exclude, const at::Tensor& negatives,
    const at::Tensor& negative_labels, const at::Tensor& rank, const at::Tensor& num_valid,
    bool normalize, std::optional<int64_t> ignore_index, bool with_gradient) {
  check_features(anchors, "anchors", -1, -1);
  check_labels(anchor_labels, "anchor_labels", anchors.size(0), anchors);
  check_prepared(negatives, negative_labels, {}, num_valid, anchors);
  check_rank(rank, negatives);
  check_active(active, anchors);
  backend_for(anchors.device().type()).check_finite(anchors, "anchors");

  Question question =
      question_of(anchors, read_temperature(temperature, anchors), normalize, with_gradient);
  question.intervals = intervals_of(anchor_labels, negative_labels);
  question.intervals.excluded = excluded_places(exclude, rank, anchors);
  question.negatives = {negatives, negative_labels, num_valid, {}};

  // The positives are the interval without the excluded negative.
  const at::Tensor begin = question.intervals.begin.minimum(num_valid);
  const at::Tensor end = question.intervals.end.minimum(num_valid);
  at::Tensor count = end - begin;  // [A]
  const at::Tensor& excluded = question.intervals.excluded;
  if (excluded.defined())
    count = count - excluded.ge(begin).logical_and_(excluded.lt(end)).to(count);
  const at::Tensor has_positive = count.gt(0);
  const at::Tensor counted = counted_labels(anchor_labels, ignore_index);
  question.direction = all_first_to_second(
      anchors, active.has_value() ? active->logical_and(has_positive) : has_positive, counted);

  question.objective = Objective::kLogSumExp;
  const Answer negative_part = run(question);
  question.objective = Objective::kMarginSum;
  question.intervals.count = true;
  question.log_sums = negative_part.values;
  const Answer positive_part = run(question);

  const at::Tensor share = count.clamp_min(1).to(positive_part.values).reciprocal();  // [A]
  const at::Tensor value = positive_part.values * share;
  if (!with_gradient) return {value, positive_part.gradients, positive_part.statistics};
  const at::Tensor weight = positive_part.statistics[1];  // of the log-sum, before the mean
  const at::Tensor gradient =
      (negative_part.gradients * weight.unsqueeze(1) + positive_part.gradients) *
      share.unsqueeze(1);
  const at::Tensor along =
      (negative_part.statistics[3] * weight + positive_part.statistics[3]) * share;
  return {value, gradient,
          at::stack({negative_part.values, weight * share, share * question.direction.ne(kInactive),
                     along})};
}

at::Tensor contrast_gradient_of_keys(const at::Tensor& keys, const at::Tensor& anchors,
                                     const at::Tensor& temperature,
                                     const std::optional<at::Tensor>& anchor_labels,
                                     const std::optional<at::Tensor>& exclude,
                                     const at::Tensor& negative_labels, const at::Tensor& rank,
                                     const at::Tensor& num_valid, const at::Tensor& log_sums,
                                     const at::Tensor& weights, c10::string_view mask_name,
                                     bool logistic, bool normalize) {
  const Mask mask = parse_mask(mask_name);
  const at::Tensor& labels = required_labels(anchor_labels, mask);
  check_features(keys, "keys", -1, -1);
  check_features(anchors, "anchors", -1, keys.size(1));
  check_alike(anchors, "anchors", keys, "keys");
  if (labels.defined()) check_labels(labels, "anchor_labels", anchors.size(0), anchors);
  check_labels(negative_labels, "negative_labels", keys.size(0), keys);
  check_rank(rank, keys);
  check_row_numbers(log_sums, "log_sums", anchors);
  check_row_numbers(weights, "weights", anchors);
  if (exclude.has_value()) check_exclude(*exclude, anchors, keys.size(0));

  // Anchors without weight are left out, and those for which nothing counts.
  const at::Tensor counted =
      weights.ne(0).logical_and_(log_sums.ne(-std::numeric_limits<double>::infinity()));
  const at::Tensor column_labels =
      labels.defined() ? labels : at::zeros({anchors.size(0)}, rank.options());
  check_labels_below_ignored(column_labels, "anchor_labels", counted);
  const Prepared columns = prepare(anchors, column_labels, counted, normalize);

  Question question = question_of(keys, read_temperature(temperature, keys), normalize, true);
  question.with_statistics = false;
  question.objective = logistic ? Objective::kLogisticGradient : Objective::kExponentialGradient;
  question.direction = rank.lt(num_valid).to(at::kChar);
  question.intervals =
      intervals_for(mask, negative_labels.index_select(0, rank), columns.labels, keys);
  if (exclude.has_value()) {
    exclude_columns(question.intervals, exclude->index_select(0, columns.order), keys.size(0));
  }
  question.negatives = columns;
  question.column_log_sums = log_sums.index_select(0, columns.order);
  // The kernels multiply weights of at most 1: the range of float16 is short.
  const at::Tensor largest =
      weights.numel() > 0 ? weights.abs().max() : at::zeros({}, weights.options());
  const at::Tensor scale =
      at::where(largest.gt(0).logical_and_(largest.isfinite()),
                largest.log2().ceil().clamp(-120, 120).exp2(), at::ones_like(largest));
  question.column_weights = (weights / scale).index_select(0, columns.order);
  return run(question).gradients * scale;
}

at::Tensor contrast_gradient_of_positives(const at::Tensor& anchors, const at::Tensor& positives,
                                          const at::Tensor& temperature, const at::Tensor& weights,
                                          bool normalize) {
  check_features(anchors, "anchors", -1, -1);
  check_features(positives, "positives", anchors.size(0), anchors.size(1));
  check_alike(positives, "positives", anchors, "anchors");
  check_row_numbers(weights, "weights", anchors);
  const UnitRows unit = unit_rows(anchors.to(weights.scalar_type()), normalize);
  const at::Tensor factor = (-weights / temperature.to(weights)).unsqueeze(1);  // [A, 1]
  at::Tensor gradient = unit.rows;
  at::Tensor kept = weights.ne(0).unsqueeze(1);
  if (normalize) {
    const UnitRows positive = unit_rows(positives.to(weights.scalar_type()), true);
    const at::Tensor along = (unit.rows * positive.rows).sum(1, /*keepdim=*/true);
    gradient = (unit.rows - along * positive.rows) / positive.norms;
    kept = kept.logical_and(positive.norms.gt(kMinNorm));
  }
  return at::where(kept, gradient * factor, 0);
}

at::Tensor class_rows(const at::Tensor& sums, const at::Tensor& classes) {
  return sums.index_select(0, classes);
}

at::Tensor class_sums(const at::Tensor& rows, const at::Tensor& classes, int64_t num_classes) {
  TORCH_CHECK_VALUE(rows.dim() == 2 && at::isFloatingType(rows.scalar_type()),
                    "rows must be floating point [R, C], but have shape ", rows.sizes(),
                    " and type ", rows.scalar_type());
  TORCH_CHECK_VALUE(classes.dim() == 1 && classes.size(0) == rows.size(0) &&
                        classes.scalar_type() == at::kLong && classes.device() == rows.device(),
                    "classes must be int64 [", rows.size(0), "] on ", rows.device(),
                    ", but have shape ", classes.sizes(), " and type ", classes.scalar_type());
  const auto type = rows.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  at::Tensor sums = at::zeros({num_classes, rows.size(1)}, rows.options().dtype(type));
  if (rows.numel() == 0) return sums;
  if (!rows.is_cpu()) {
    // Sorts by class and adds in order: the same bits from run to run.
    return sums.index_put_({classes}, rows.to(type), /*accumulate=*/true);
  }
  const at::Tensor numbers = rows.to(type).contiguous();
  const at::Tensor places = classes.contiguous();
  const int64_t* place = places.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < places.size(0); ++i) {
    TORCH_CHECK_VALUE(0 <= place[i] && place[i] < num_classes, "classes must be within 0 and ",
                      num_classes - 1, ", but classes[", i, "] is ", place[i]);
  }
  const int64_t channels = rows.size(1);
  const auto add = [&](auto* total, const auto* from) {
    // Each task adds all rows of some channels, in order and in double.
    at::parallel_for(0, channels, 32, [&](int64_t begin, int64_t end) {
      std::vector<double> sum(num_classes * (end - begin), 0.0);
      for (int64_t i = 0; i < places.size(0); ++i) {
        double* to = &sum[place[i] * (end - begin)];
        for (int64_t c = begin; c < end; ++c) to[c - begin] += from[i * channels + c];
      }
      for (int64_t k = 0; k < num_classes; ++k) {
        for (int64_t c = begin; c < end; ++c) {
          total[k * channels + c] = sum[k * (end - begin) + c - begin];
        }
      }
    });
  };
  if (type == at::kDouble) {
    add(sums.mutable_data_ptr<double>(), numbers.const_data_ptr<double>());
  } else {
    add(sums.mutable_data_ptr<float>(), numbers.const_data_ptr<float>());
  }
  return sums;
}

}  // namespace cac
