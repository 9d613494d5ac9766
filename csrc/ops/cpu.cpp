// The CPU backend: runs the torch-free kernels on torch's threads.
#include "ops/cpu.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <atomic>

#include "kernels/cpu/cpu_capability.h"
#include "kernels/cpu/solver.h"
#include "ops/backend.h"
#include "ops/operators.h"

namespace cac {
namespace {

// Threads draw tasks from a queue, because the masks make some tasks much cheaper than others.
void parallel_for(int64_t tasks, const std::function<void(int64_t)>& body) {
  std::atomic<int64_t> next{0};
  at::parallel_for(0, std::min<int64_t>(tasks, at::get_num_threads()), 1, [&](int64_t, int64_t) {
    for (int64_t task = next++; task < tasks; task = next++) body(task);
  });
}

// Multiplies in the given type.
cpu::Arithmetic arithmetic_of(DType type) {
  switch (type) {
    case DType::kFloat64:
      return cpu::Arithmetic::kFloat64;
    case DType::kBFloat16:
      return cpu::Arithmetic::kBFloat16;
    default:
      return cpu::Arithmetic::kFloat32;
  }
}

// Below this length the second and third bfloat16 parts of a float32 are subnormal, which AMX
// treats as zero.
constexpr double kShortNegatives = 1e-20;

// Null if no kernel in use multiplies negatives of this type.
const cpu::TileKernel* find_kernel(DType negatives) {
  const cpu::TileKernel* split = nullptr;
  if (negatives == DType::kFloat32 &&
      at::globalContext().float32MatmulPrecision() != at::Float32MatmulPrecision::HIGHEST) {
    split = cpu::find_tile_kernel(cpu::Arithmetic::kSplitBFloat16);
  }
  return split != nullptr ? split : cpu::find_tile_kernel(arithmetic_of(negatives));
}

class CpuBackend final : public Backend {
 public:
  at::ScalarType compute_type(at::ScalarType features) const override {
    if (features == at::kDouble) return at::kDouble;
    const bool may_be_bf16 =
        features == at::kBFloat16 ||
        (features == at::kFloat &&
         at::globalContext().float32MatmulPrecision() == at::Float32MatmulPrecision::MEDIUM);
    const bool has_bf16 = cpu::find_tile_kernel(cpu::Arithmetic::kBFloat16) != nullptr;
    return may_be_bf16 && has_bf16 ? at::kBFloat16 : at::kFloat;
  }

  int64_t channel_multiple(at::ScalarType compute_type) const override {
    return cpu::find_tile_kernel(arithmetic_of(kernel_type(compute_type)))->channel_multiple;
  }

  void check_finite(const at::Tensor& features, const char* name) const override {
    const at::Tensor rows = features.stride(1) == 1 ? features : features.contiguous();
    const int64_t where =
        cpu::find_non_finite(rows.const_data_ptr(), kernel_type(rows.scalar_type()), rows.size(0),
                             rows.stride(0), rows.size(1), parallel_for);
    if (where < 0) return;
    const int64_t row = where / rows.size(1), channel = where % rows.size(1);
    TORCH_CHECK_VALUE(false, name, " must be finite, but ", name, "[", row, ", ", channel, "] is ",
                      rows[row][channel].item<double>());
  }

  void prepare_rows(const PrepareRows& rows) const override {
    cpu::prepare_rows(rows, parallel_for);
  }

  bool multiplies(at::ScalarType negatives) const override {
    if (negatives == at::kBFloat16) {  // only some instruction sets
      return cpu::find_tile_kernel(cpu::Arithmetic::kBFloat16) != nullptr;
    }
    return negatives == at::kDouble || negatives == at::kFloat;
  }

  bool reads_values() const override { return true; }

  void solve(const ContrastiveProblem& given) const override {
    ContrastiveProblem problem = given;
    if (given.num_valid != nullptr) {
      problem.num_negatives = std::min(given.num_negatives, *given.num_valid);
      problem.num_leading_rows = std::min(given.num_leading_rows, *given.num_valid);
    }
    const cpu::TileKernel* kernel = find_kernel(problem.negative_dtype);
    TORCH_INTERNAL_ASSERT(kernel != nullptr, "check_prepared() refuses other types");
    double largest_logit = 0;
    if (!problem.normalize) {
      const cpu::Magnitudes found = cpu::measure_magnitudes(problem, parallel_for);
      largest_logit = found.logit;
      TORCH_CHECK_VALUE(largest_logit < cpu::kLogitLimit / 2,
                        "the features are too long for normalize=False: a product of an anchor "
                        "and a negative or positive over the temperature can reach ",
                        largest_logit, ", and must stay below ", cpu::kLogitLimit / 2,
                        ". Scale the features, or use normalize=True");
      if (problem.negative_dtype == DType::kFloat32 && found.negative < kShortNegatives) {
        kernel = cpu::find_tile_kernel(cpu::Arithmetic::kVectorFloat32);
      }
    }
    cpu::solve(problem, largest_logit, *kernel, parallel_for);
  }
};

const CpuBackend backend;
const bool registered = (register_backend(at::kCPU, &backend), true);

}  // namespace

Multiplication cpu_multiplication(at::ScalarType features) {
  const cpu::TileKernel* kernel = find_kernel(kernel_type(backend.compute_type(features)));
  const int parts = kernel->anchor_parts;  // those i and j with i + j < parts are multiplied
  return {kernel->instruction_set, scalar_type(kernel->anchor), parts * (parts + 1) / 2};
}

TORCH_LIBRARY_IMPL(cac_ext, CPU, m) {
  m.impl("prepare_negatives", prepare_negatives);
  m.impl("prepare_keys", prepare_keys);
  m.impl("contrast", contrast);
  m.impl("pairwise_contrast", pairwise_contrast);
  m.impl("contrast_gradient_of_keys", contrast_gradient_of_keys);
  m.impl("contrast_gradient_of_positives", contrast_gradient_of_positives);
  m.impl("class_rows", class_rows);
  m.impl("class_sums", class_sums);
  m.impl("masked_logsumexp", masked_logsumexp);
  m.impl("masked_contrastive_loss", masked_contrastive_loss);
  m.impl("directional_contrastive_loss", directional_contrastive_loss);
}

}  // namespace cac
