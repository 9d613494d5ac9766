// The CUDA backend: runs the torch-free kernels with torch's allocator, streams and precision
// settings.
#include <ATen/Context.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "kernels/cuda/launch.h"
#include "ops/aten_backend.h"
#include "ops/backend.h"
#include "ops/operators.h"

namespace cac {
namespace {

// 80 for sm_80. Without a GPU (tracing with fake tensors) it is assumed to be recent.
int current_architecture() {
  if (c10::cuda::device_count() == 0) return 80;
  const int device = c10::cuda::current_device();
  int major = 0;
  int minor = 0;
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
  return 10 * major + minor;
}

class CudaBackend final : public Backend {
 public:
  at::ScalarType compute_type(at::ScalarType features) const override {
    if (features == at::kDouble) return fallback_.compute_type(features);
    // Turing multiplies neither bfloat16 nor TF32; float16 is as accurate for unit vectors.
    const bool turing = current_architecture() < 80;
    if (features == at::kFloat) {
      const auto precision = at::globalContext().float32MatmulPrecision();
      if (precision == at::Float32MatmulPrecision::HIGHEST) return at::kFloat;
      if (turing) return at::kHalf;
      return precision == at::Float32MatmulPrecision::MEDIUM ? at::kBFloat16 : at::kFloat;
    }
    return turing ? at::kHalf : features;
  }

  // Rows of whole 16 bytes, the unit of asynchronous copies.
  int64_t channel_multiple(at::ScalarType compute_type) const override {
    return 16 / static_cast<int64_t>(c10::elementSize(compute_type));
  }

  bool multiplies(at::ScalarType) const override { return true; }

  bool reads_values() const override { return false; }

  // The host would have to wait for the device to read the values.
  void check_finite(const at::Tensor&, const char*) const override {}

  void prepare_rows(const PrepareRows& rows) const override {
    if (!has_kernels(rows.source_dtype, rows.padded_channels)) return fallback_.prepare_rows(rows);
    cuda::prepare_rows(rows, c10::cuda::getCurrentCUDAStream());
  }

  void solve(const ContrastiveProblem& problem) const override {
    if (!has_kernels(problem.feature_dtype, problem.padded_channels)) {
      return fallback_.solve(problem);
    }
    const cuda::Arithmetic arithmetic = arithmetic_of(problem);
    if (!cuda::fits_device(problem, arithmetic)) return fallback_.solve(problem);
    TORCH_CHECK_VALUE(reinterpret_cast<uintptr_t>(problem.negatives) % 16 == 0,
                      "prepared negatives must begin at a multiple of 16 bytes; pass them as "
                      "prepare_negatives() returned them");
    const cuda::LaunchPlan plan = cuda::plan_launch(problem, arithmetic);
    const auto bytes = static_cast<int64_t>(cuda::workspace_bytes(problem, plan));
    const at::Tensor workspace =
        at::empty({bytes}, at::TensorOptions().device(at::kCUDA).dtype(at::kByte));
    // The allocator reuses the memory only for work queued after this on the stream.
    cuda::solve(problem, plan, workspace.mutable_data_ptr(), c10::cuda::getCurrentCUDAStream());
  }

 private:
  static bool has_kernels(DType features, int64_t padded_channels) {
    return features != DType::kFloat64 && padded_channels <= cuda::kMaxPaddedChannels;
  }

  static cuda::Arithmetic arithmetic_of(const ContrastiveProblem& problem) {
    const bool turing = current_architecture() < 80;
    switch (problem.negative_dtype) {
      case DType::kBFloat16:
        TORCH_CHECK_TYPE(!turing,
                         "this GPU does not multiply bfloat16; prepare the negatives on the GPU "
                         "that uses them");
        return cuda::Arithmetic::kBFloat16;
      case DType::kFloat16:
        return cuda::Arithmetic::kFloat16;
      default:
        return turing || at::globalContext().float32MatmulPrecision() ==
                             at::Float32MatmulPrecision::HIGHEST
                   ? cuda::Arithmetic::kFloat32
                   : cuda::Arithmetic::kTensorFloat32;
    }
  }

  const AtenBackend fallback_{at::kCUDA};
};

const CudaBackend backend;
const bool registered = (register_backend(at::kCUDA, &backend), true);

// Runs the operator with the device of its first tensor as the current one. That tensor may be on
// the CPU if a later one is on CUDA; the operator's checks then name the mismatch.
template <auto kOperator>
struct OnDevice;

template <class Result, class... Rest, Result (*kOperator)(const at::Tensor&, Rest...)>
struct OnDevice<kOperator> {
  static Result call(const at::Tensor& first, Rest... rest) {
    c10::cuda::OptionalCUDAGuard guard;
    if (first.is_cuda()) guard.set_device(first.device());
    return kOperator(first, rest...);
  }
};

}  // namespace

TORCH_LIBRARY_IMPL(cac_ext, CUDA, m) {
  m.impl("prepare_negatives", OnDevice<prepare_negatives>::call);
  m.impl("prepare_keys", OnDevice<prepare_keys>::call);
  m.impl("contrast", OnDevice<contrast>::call);
  m.impl("pairwise_contrast", OnDevice<pairwise_contrast>::call);
  m.impl("contrast_gradient_of_keys", OnDevice<contrast_gradient_of_keys>::call);
  m.impl("contrast_gradient_of_positives", OnDevice<contrast_gradient_of_positives>::call);
  m.impl("class_rows", OnDevice<class_rows>::call);
  m.impl("class_sums", OnDevice<class_sums>::call);
  m.impl("masked_logsumexp", OnDevice<masked_logsumexp>::call);
  m.impl("masked_contrastive_loss", OnDevice<masked_contrastive_loss>::call);
  m.impl("directional_contrastive_loss", OnDevice<directional_contrastive_loss>::call);
}

}  // namespace cac
