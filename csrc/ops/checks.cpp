#include "ops/checks.h"

#include <c10/util/Exception.h>

#include <cmath>
#include <limits>
#include <string>

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
  TORCH_CHECK_TYPE(at::isIntegralType(labels.scalar_type(), /*includeBool=*/false), name,
                   " must be integers (int64, int32, uint8, ...), but got ", labels.scalar_type());
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
}

void check_alike(const at::Tensor& tensor, const char* name, const at::Tensor& like,
                 const char* like_name) {
  TORCH_CHECK_TYPE(tensor.scalar_type() == like.scalar_type(), name, " must be ",
                   like.scalar_type(), " like ", like_name, ", but got ", tensor.scalar_type());
  TORCH_CHECK_VALUE(tensor.device() == like.device(), name, " must be on ", like.device(), " like ",
                    like_name, ", but is on ", tensor.device());
}

void check_prepared(const at::Tensor& negatives, const at::Tensor& negative_labels,
                    const at::Tensor& leading_rows, const at::Tensor& features) {
  TORCH_CHECK_VALUE(negatives.device() == features.device(), "negatives must be on ",
                    features.device(), " like the features, but are on ", negatives.device());
  TORCH_CHECK_VALUE(negatives.dim() == 2 && negatives.is_contiguous() &&
                        negatives.size(1) >= features.size(1) && negative_labels.dim() == 1 &&
                        negative_labels.is_contiguous() &&
                        negative_labels.scalar_type() == at::kLong &&
                        negative_labels.size(0) == negatives.size(0) && leading_rows.dim() == 1 &&
                        leading_rows.is_contiguous() && leading_rows.scalar_type() == at::kLong,
                    "negatives must come from prepare_negatives() and have ", features.size(1),
                    " channels like the features, but got features of shape ", negatives.sizes(),
                    " and labels of shape ", negative_labels.sizes());
  TORCH_CHECK_TYPE(
      (negatives.scalar_type() == at::kDouble) == (features.scalar_type() == at::kDouble),
      "negatives and features must be float64 together or not at all, but got ",
      negatives.scalar_type(), " negatives and ", features.scalar_type(), " features");
  TORCH_CHECK_VALUE(negatives.size(0) < std::numeric_limits<int32_t>::max(),
                    "at most 2^31 - 2 negatives are supported, but got ", negatives.size(0));
}

void check_temperature(double temperature) {
  TORCH_CHECK_VALUE(std::isfinite(temperature) && temperature > 0,
                    "temperature must be a finite number above 0, but got ", temperature);
}

void check_eps(double eps) {
  TORCH_CHECK_VALUE(std::isfinite(eps) && eps >= 0,
                    "eps must be a finite number, 0 or above, but got ", eps);
}

}  // namespace cac
