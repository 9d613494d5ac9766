// Argument checks of all operators. Each names the argument, what is needed and what was given.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace cac {

// [rows, channels] of a floating type; -1 stands for any size.
void check_features(const at::Tensor& features, const char* name, int64_t rows, int64_t channels);

// Integer [rows] on the device of `like`.
void check_labels(const at::Tensor& labels, const char* name, int64_t rows, const at::Tensor& like);

// Floating [rows] on the device of `like`.
void check_confidences(const at::Tensor& confidences, const char* name, int64_t rows,
                       const at::Tensor& like);

// Same type and device.
void check_alike(const at::Tensor& tensor, const char* name, const at::Tensor& like,
                 const char* like_name);

// The tensors that prepare_negatives() returns, for features of this type, device and number of
// channels. `leading_rows` may be undefined. On the CPU the values are checked too, so that the
// kernels never read beyond the end of a tensor.
void check_prepared(const at::Tensor& negatives, const at::Tensor& negative_labels,
                    const at::Tensor& leading_rows, const at::Tensor& num_valid,
                    const at::Tensor& features);

// Bool [A] on the device of the anchors.
void check_active(const std::optional<at::Tensor>& active, const at::Tensor& anchors);

// int64 [A] on the device of the anchors; on the CPU also each -1 or a row below `rows`.
void check_exclude(const at::Tensor& exclude, const at::Tensor& anchors, int64_t rows);

// An integer scalar on the CPU or the device of `like`; on the CPU also within 0 and `rows`.
void check_length(const at::Tensor& length, int64_t rows, const at::Tensor& like);

// Raises on the CPU if a counted label is the one that stands for what does not count.
void check_labels_below_ignored(const at::Tensor& labels, const char* name,
                                const at::Tensor& counted);

void check_temperature(double temperature);
void check_eps(double eps);
void check_confidence_threshold(double threshold);

}  // namespace cac
