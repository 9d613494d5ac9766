// The operators, for every device that has a Backend.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/string_view.h>

#include <optional>
#include <tuple>

namespace cac {

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> prepare_negatives(
    const at::Tensor& negatives, const at::Tensor& negative_labels, bool normalize,
    std::optional<int64_t> ignore_index);

// The operators of the whole family of losses (contrast.cpp); see schemas.cpp.
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> prepare_keys(
    const at::Tensor& keys, const std::optional<at::Tensor>& labels,
    const std::optional<at::Tensor>& length, bool normalize, std::optional<int64_t> ignore_index);

std::tuple<at::Tensor, at::Tensor, at::Tensor> contrast(
    const at::Tensor& anchors, const std::optional<at::Tensor>& positives,
    const std::optional<at::Tensor>& keys, const at::Tensor& temperature,
    const std::optional<at::Tensor>& anchor_labels, const std::optional<at::Tensor>& active,
    const std::optional<at::Tensor>& exclude, const at::Tensor& negatives,
    const at::Tensor& negative_labels, const std::optional<at::Tensor>& rank,
    const at::Tensor& leading_rows, const at::Tensor& num_valid, c10::string_view mask,
    bool normalize, double eps, std::optional<int64_t> ignore_index, bool with_gradient);

std::tuple<at::Tensor, at::Tensor, at::Tensor> pairwise_contrast(
    const at::Tensor& anchors, const std::optional<at::Tensor>& keys, const at::Tensor& temperature,
    const at::Tensor& anchor_labels, const std::optional<at::Tensor>& active,
    const std::optional<at::Tensor>& exclude, const at::Tensor& negatives,
    const at::Tensor& negative_labels, const at::Tensor& rank, const at::Tensor& num_valid,
    bool normalize, std::optional<int64_t> ignore_index, bool with_gradient);

at::Tensor contrast_gradient_of_keys(const at::Tensor& keys, const at::Tensor& anchors,
                                     const at::Tensor& temperature,
                                     const std::optional<at::Tensor>& anchor_labels,
                                     const std::optional<at::Tensor>& exclude,
                                     const at::Tensor& negative_labels, const at::Tensor& rank,
                                     const at::Tensor& num_valid, const at::Tensor& log_sums,
                                     const at::Tensor& weights, c10::string_view mask,
                                     bool logistic, bool normalize);

at::Tensor contrast_gradient_of_positives(const at::Tensor& anchors, const at::Tensor& positives,
                                          const at::Tensor& temperature, const at::Tensor& weights,
                                          bool normalize);

at::Tensor class_rows(const at::Tensor& sums, const at::Tensor& classes);
at::Tensor class_sums(const at::Tensor& rows, const at::Tensor& classes, int64_t num_classes);

std::tuple<at::Tensor, at::Tensor> masked_logsumexp(
    const at::Tensor& anchors, const at::Tensor& negatives, const at::Tensor& anchor_labels,
    const at::Tensor& negative_labels, const at::Tensor& num_valid, double temperature,
    bool normalize, std::optional<int64_t> ignore_index, bool with_gradient);

std::tuple<at::Tensor, at::Tensor> masked_contrastive_loss(
    const at::Tensor& anchors, const at::Tensor& positives, const at::Tensor& negatives,
    const at::Tensor& anchor_labels, const at::Tensor& negative_labels,
    const at::Tensor& leading_rows, const at::Tensor& num_valid,
    const std::optional<at::Tensor>& active, double temperature, bool normalize, double eps,
    std::optional<int64_t> ignore_index, bool with_gradient);

std::tuple<at::Tensor, at::Tensor, at::Tensor> directional_contrastive_loss(
    const at::Tensor& features1, const at::Tensor& features2, const at::Tensor& confidences1,
    const at::Tensor& confidences2, const at::Tensor& pseudo_labels1,
    const at::Tensor& pseudo_labels2, const at::Tensor& negatives,
    const at::Tensor& negative_labels, const at::Tensor& leading_rows, const at::Tensor& num_valid,
    double temperature, double confidence_threshold, bool normalize, double eps,
    std::optional<int64_t> ignore_index, bool with_gradient);

}  // namespace cac
