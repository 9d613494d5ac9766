// Rows made unit length by plain ATen operations.
#pragma once

#include <ATen/core/Tensor.h>

namespace cac {

struct UnitRows {
  at::Tensor rows;   // [R, C]
  at::Tensor norms;  // [R, 1] lengths before; undefined without normalization
};

// As torch.nn.functional.normalize, for rows of any length. Rows of at most kMinNorm (row_math.h)
// are divided by it.
UnitRows unit_rows(const at::Tensor& features, bool normalize);

}  // namespace cac
