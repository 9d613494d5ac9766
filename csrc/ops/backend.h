// What a device supplies to the operators; all else is written once, in ATen.
#pragma once

#include <ATen/core/Tensor.h>

#include "kernels/problem.h"

namespace cac {

class Backend {
 public:
  virtual ~Backend() = default;

  // Type in which features of this type are multiplied; sums are float32 (float64 for float64).
  virtual at::ScalarType compute_type(at::ScalarType features) const = 0;

  // Prepared negatives have their channels padded to a multiple of this.
  virtual int64_t channel_multiple(at::ScalarType compute_type) const = 0;

  // Whether the kernels take prepared negatives of this type.
  virtual bool multiplies(at::ScalarType negatives) const = 0;

  // Whether the host can read values without waiting for the device, so that they are checked.
  virtual bool reads_values() const = 0;

  // Throws a ValueError with the position of an element of features [A, C] that is not finite. Does
  // nothing if the host cannot read values without waiting: nan and inf then show in the loss.
  virtual void check_finite(const at::Tensor& features, const char* name) const = 0;

  virtual void prepare_rows(const PrepareRows& rows) const = 0;
  virtual void solve(const ContrastiveProblem& problem) const = 0;
};

void register_backend(at::DeviceType device, const Backend* backend);
const Backend& backend_for(at::DeviceType device);

DType kernel_type(at::ScalarType type);

// The inverse of kernel_type.
at::ScalarType scalar_type(DType type);

}  // namespace cac
