// What a device supplies to the operators; everything else about them is written once, in ATen.
#pragma once

#include <ATen/core/Tensor.h>

#include "kernels/contrastive.h"

namespace cac {

class Backend {
 public:
  virtual ~Backend() = default;

  // Type in which features of this type are multiplied; sums are float32 (float64 for float64).
  virtual at::ScalarType compute_type(at::ScalarType features) const = 0;

  // Prepared negatives have their channels padded to a multiple of this.
  virtual int64_t channel_multiple(at::ScalarType compute_type) const = 0;

  // Whether kernels read prepared negatives of this type.
  virtual bool multiplies(at::ScalarType negatives) const = 0;

  // Whether the host sees values without waiting, so that they can be checked.
  virtual bool reads_values() const = 0;

  // Throws ValueError that says where features [A, C] are not finite. A device whose values the
  // host cannot see without waiting does nothing: nan and inf then show in the loss.
  virtual void check_finite(const at::Tensor& features, const char* name) const = 0;

  virtual void prepare_rows(const PrepareRows& rows) const = 0;
  virtual void contrastive(const ContrastiveProblem& problem) const = 0;
};

void register_backend(at::DeviceType device, const Backend* backend);
const Backend& backend_for(at::DeviceType device);

DType kernel_type(at::ScalarType type);

}  // namespace cac
