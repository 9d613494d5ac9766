// A backend of plain ATen operations: slow, but for any type, any number of channels, any device.
//
// Devices use it for what their kernels do not cover. It computes the A x N matrix in blocks of
// anchors.
#pragma once

#include <ATen/core/Tensor.h>

#include "ops/backend.h"

namespace cac {

class AtenBackend final : public Backend {
 public:
  explicit AtenBackend(at::DeviceType device) : device_(device) {}

  at::ScalarType compute_type(at::ScalarType features) const override;
  int64_t channel_multiple(at::ScalarType compute_type) const override;
  bool multiplies(at::ScalarType negatives) const override;
  bool reads_values() const override;
  void check_finite(const at::Tensor& features, const char* name) const override;
  void prepare_rows(const PrepareRows& rows) const override;
  void solve(const ContrastiveProblem& problem) const override;

 private:
  // The memory as a tensor, without a copy. `pointer` may be null if the tensor is empty.
  at::Tensor wrap(const void* pointer, at::IntArrayRef sizes, at::IntArrayRef strides,
                  at::ScalarType type) const;

  struct Tensors;
  Tensors wrap(const ContrastiveProblem& problem) const;
  // Anchors [first, first + count).
  void solve_block(const ContrastiveProblem& problem, const Tensors& tensors, int64_t first,
                   int64_t count) const;

  at::DeviceType device_;
};

}  // namespace cac
