// The operators, for every device that has a Backend.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

namespace cac {

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> prepare_negatives(
    const at::Tensor& negatives, const at::Tensor& negative_labels, bool normalize,
    std::optional<int64_t> ignore_index);

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
