#include "ops/checks.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/isfinite.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "ops/backend.h"

namespace cac {
namespace {

std::string size_text(int64_t size, const char* any) {
  return size < 0 ? any : std::to_string(size);
}

}  // namespace

void check_features(const at::Tensor& features, const char* name, int64_t rows, int64_t channels) {
  const bool fits = features.dim() == 2 && (rows < 0 || features.size(0) == rows) &&
                    (channels < 0 || features.size(1) == channels);
  TORCH_CHECK_VALUE(fits, name, " must have shape [", size_text(rows, "pixels"), ", ",
                    size_text(channels, "channels"), "], but got ", features.sizes());
  TORCH_CHECK_VALUE(features.size(1) > 0, name, " must have at least one channel, but got shape ",
                    features.sizes());
  const auto type = features.scalar_type();
  TORCH_CHECK_TYPE(
      type == at::kFloat || type == at::kDouble || type == at::kBFloat16 || type == at::kHalf, name,
      " must be float32, float64, bfloat16 or float16, but got ", type);
}

void check_labels(const at::Tensor& labels, const char* name, int64_t rows,
                  const at::Tensor& like) {
  TORCH_CHECK_VALUE(labels.dim() == 1 && labels.size(0) == rows, name, " must have shape [", rows,
                    "], one label for each row of features, but got ", labels.sizes());
  const auto type = labels.scalar_type();
  TORCH_CHECK_TYPE(type == at::kLong || type == at::kInt || type == at::kShort ||
                       type == at::kChar || type == at::kByte,
                   name, " must be integers (int64, int32, int16, int8 or uint8), but got ", type);
  TORCH_CHECK_VALUE(labels.device() == like.device(), name, " must be on ", like.device(),
                    " like the features, but is on ", labels.device());
}

void check_confidences(const at::Tensor& confidences, const char* name, int64_t rows,
                       const at::Tensor& like) {
  TORCH_CHECK_VALUE(confidences.dim() == 1 && confidences.size(0) == rows, name,
                    " must have shape [", rows, "], one probability for each row of features, ",
                    "but got ", confidences.sizes());
  TORCH_CHECK_TYPE(at::isFloatingType(confidences.scalar_type()), name,
                   " must be floating point, but got ", confidences.scalar_type());
  TORCH_CHECK_VALUE(confidences.device() == like.device(), name, " must be on ", like.device(),
                    " like the features, but is on ", confidences.device());
  if (!backend_for(like.device().type()).reads_values()) return;
  const at::Tensor wrong = confidences.isfinite().logical_not_();
  if (!wrong.any().item<bool>()) return;
  const int64_t where = wrong.to(at::kByte).argmax().item<int64_t>();
  TORCH_CHECK_VALUE(false, name, " must be finite, but ", name, "[", where, "] is ",
                    confidences[where].item<double>());
}

void check_alike(const at::Tensor& tensor, const char* name, const at::Tensor& like,
                 const char* like_name) {
  TORCH_CHECK_TYPE(tensor.scalar_type() == like.scalar_type(), name, " must be ",
                   like.scalar_type(), " like ", like_name, ", but got ", tensor.scalar_type());
  TORCH_CHECK_VALUE(tensor.device() == like.device(), name, " must be on ", like.device(), " like ",
                    like_name, ", but is on ", tensor.device());
}

void check_prepared(const at::Tensor& negatives, const at::Tensor& negative_labels,
                    const at::Tensor& leading_rows, const at::Tensor& num_valid,
                    const at::Tensor& features) {
  constexpr const char* kAdvice = "; prepare them with prepare_negatives() on this device";
  TORCH_CHECK_VALUE(negatives.device() == features.device(), "negatives must be on ",
                    features.device(), " like the features, but are on ", negatives.device());
  TORCH_CHECK_VALUE(negatives.dim() == 2 && negatives.is_contiguous(),
                    "prepared negatives must be contiguous [N, channels], but have shape ",
                    negatives.sizes(), kAdvice);
  TORCH_CHECK_TYPE(
      (negatives.scalar_type() == at::kDouble) == (features.scalar_type() == at::kDouble),
      "negatives and features must be float64 together or not at all, but got ",
      negatives.scalar_type(), " negatives and ", features.scalar_type(), " features");
  const Backend& backend = backend_for(features.device().type());
  TORCH_CHECK_TYPE(backend.multiplies(negatives.scalar_type()), "negatives of type ",
                   negatives.scalar_type(), " cannot be multiplied on this device", kAdvice);
  const int64_t multiple = backend.channel_multiple(negatives.scalar_type());
  const int64_t channels = (features.size(1) + multiple - 1) / multiple * multiple;
  TORCH_CHECK_VALUE(negatives.size(1) == channels, "negatives must have ", features.size(1),
                    " channels like the features, padded to ", channels, ", but have ",
                    negatives.size(1), kAdvice);
  TORCH_CHECK_VALUE(negatives.size(0) < std::numeric_limits<int32_t>::max(),
                    "at most 2^31 - 2 negatives are supported, but got ", negatives.size(0));
  const auto check_index = [&](const at::Tensor& index, const char* name, int64_t dim) {
    TORCH_CHECK_VALUE(index.dim() == dim && index.is_contiguous() &&
                          index.scalar_type() == at::kLong && index.device() == features.device(),
                      name, " of prepared negatives must be a contiguous int64 tensor of ", dim,
                      " dimensions on ", features.device(), ", but has shape ", index.sizes(),
                      " and type ", index.scalar_type(), " and is on ", index.device(), kAdvice);
  };
  check_index(negative_labels, "labels", 1);
  check_index(num_valid, "num_valid", 0);
  const int64_t rows = negatives.size(0);
  TORCH_CHECK_VALUE(negative_labels.size(0) == rows, "prepared negatives have ", rows,
                    " rows, but ", negative_labels.size(0), " labels", kAdvice);
  if (leading_rows.defined()) {
    check_index(leading_rows, "leading_rows", 1);
    TORCH_CHECK_VALUE(leading_rows.size(0) <= rows, "leading_rows of prepared negatives hold ",
                      leading_rows.size(0), " rows of ", rows, kAdvice);
  }
  if (!backend.reads_values()) return;

  const int64_t valid = *num_valid.const_data_ptr<int64_t>();
  TORCH_CHECK_VALUE(0 <= valid && valid <= rows, "num_valid must be within 0 and ", rows,
                    ", but is ", valid, kAdvice);
  const int64_t* labels = negative_labels.const_data_ptr<int64_t>();
  TORCH_CHECK_VALUE(std::is_sorted(labels, labels + rows),
                    "labels of prepared negatives must be sorted", kAdvice);
  if (!leading_rows.defined()) return;
  const int64_t* leading = leading_rows.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < leading_rows.size(0); ++i) {
    // Negatives that count come first.
    const bool fits = 0 <= leading[i] && leading[i] < (i < valid ? valid : rows);
    TORCH_CHECK_VALUE(fits, "leading_rows[", i, "] is ", leading[i], ", but must be a row below ",
                      i < valid ? valid : rows, kAdvice);
  }
}

void check_active(const std::optional<at::Tensor>& active, const at::Tensor& anchors) {
  if (!active.has_value()) return;
  TORCH_CHECK_VALUE(active->dim() == 1 && active->size(0) == anchors.size(0),
                    "active must have shape [", anchors.size(0),
                    "], one flag for each anchor, but got ", active->sizes());
  TORCH_CHECK_TYPE(active->scalar_type() == at::kBool, "active must be bool, but got ",
                   active->scalar_type());
  TORCH_CHECK_VALUE(active->device() == anchors.device(), "active must be on ", anchors.device(),
                    " like the anchors, but is on ", active->device());
}

void check_exclude(const at::Tensor& exclude, const at::Tensor& anchors, int64_t rows) {
  TORCH_CHECK_VALUE(exclude.dim() == 1 && exclude.size(0) == anchors.size(0),
                    "exclude must have shape [", anchors.size(0),
                    "], one row of the negatives (or -1) for each anchor, but got ",
                    exclude.sizes());
  TORCH_CHECK_TYPE(exclude.scalar_type() == at::kLong, "exclude must be int64, but got ",
                   exclude.scalar_type());
  TORCH_CHECK_VALUE(exclude.device() == anchors.device(), "exclude must be on ", anchors.device(),
                    " like the anchors, but is on ", exclude.device());
  if (!backend_for(anchors.device().type()).reads_values()) return;
  const at::Tensor wrong = exclude.lt(-1).logical_or_(exclude.ge(rows));
  if (!wrong.any().item<bool>()) return;
  const int64_t where = wrong.to(at::kByte).argmax().item<int64_t>();
  TORCH_CHECK_VALUE(false, "exclude must be -1 or a row of the ", rows, " negatives, but exclude[",
                    where, "] is ", exclude[where].item<int64_t>());
}

void check_length(const at::Tensor& length, int64_t rows, const at::Tensor& like) {
  TORCH_CHECK_VALUE(length.dim() == 0, "num_valid must be a number or a tensor of one number, but ",
                    "got shape ", length.sizes());
  TORCH_CHECK_TYPE(at::isIntegralType(length.scalar_type(), /*includeBool=*/false),
                   "num_valid must be an integer, but got ", length.scalar_type());
  TORCH_CHECK_VALUE(length.is_cpu() || length.device() == like.device(), "num_valid must be on ",
                    like.device(), " like the negatives, or on the CPU, but is on ",
                    length.device());
  if (!length.is_cpu()) return;
  const int64_t value = length.item<int64_t>();
  TORCH_CHECK_VALUE(0 <= value && value <= rows, "num_valid must be within 0 and ", rows,
                    ", the number of negatives, but is ", value);
}

void check_labels_below_ignored(const at::Tensor& labels, const char* name,
                                const at::Tensor& counted) {
  if (!backend_for(labels.device().type()).reads_values()) return;
  constexpr int64_t kLargest = std::numeric_limits<int64_t>::max();
  TORCH_CHECK_VALUE(!labels.to(at::kLong).eq(kLargest).logical_and_(counted).any().item<bool>(),
                    name, " must be below 2^63 - 1 if some rows do not count");
}

void check_temperature(double temperature) {
  TORCH_CHECK_VALUE(std::isfinite(temperature) && temperature > 0,
                    "temperature must be a finite number above 0, but got ", temperature);
}

void check_eps(double eps) {
  TORCH_CHECK_VALUE(std::isfinite(eps) && eps >= 0,
                    "eps must be a finite number, 0 or above, but got ", eps);
}

void check_confidence_threshold(double threshold) {
  TORCH_CHECK_VALUE(0 <= threshold && threshold <= 1,
                    "confidence_threshold must be a probability within 0 and 1, but got ",
                    threshold);
}

}  // namespace cac
