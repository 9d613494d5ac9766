// The fused loss on CUDA, free of torch: launches only, no allocation, no host synchronisation.
//
// Three kernels a call. `plan` brings the active anchors together, class by class, and divides the
// work; `stream` sends the negatives past tiles of anchors and leaves partial sums; `combine` adds
// these up in a fixed order and turns them into losses and gradients.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/contrastive.h"

struct CUstream_st;

namespace cac::cuda {

// Of the two matrix products; sums are float32 in all of them.
enum class Arithmetic : int32_t {
  kBFloat16,       // sm_80; negatives in bfloat16
  kFloat16,        // sm_75; negatives in float16
  kTensorFloat32,  // sm_80; negatives in float32, products of 11-bit significands
  kFloat32,        // sm_75; negatives in float32, float32-accurate by three TF32 products (sm_75:
                   // without matrix units, slowly, and up to 128 channels only)
};

// Channels beyond this are not supported; negatives' rows are padded to whole 16 bytes.
constexpr int64_t kMaxPaddedChannels = 256;

// How a call is cut into pieces. Fields may be lowered before workspace_bytes is asked.
struct LaunchPlan {
  Arithmetic arithmetic;
  bool online;          // running maximum instead of the bounded shift
  int64_t tile_rows;    // anchors a block holds
  int64_t max_tiles;    // with every anchor active
  int64_t wave_tiles;   // tiles worked on in one launch
  int64_t max_workers;  // blocks among which the negatives of a wave are shared out
  int64_t channels;     // row length of partial gradients
};

// Whether a block of the current device has the shared memory this problem takes. What the limits
// above permit fits everywhere, but for kFloat32 beyond 128 channels on sm_75.
bool fits_device(const ContrastiveProblem& problem, Arithmetic arithmetic);

// For the current device. Throws std::runtime_error where the problem exceeds the limits above, and
// where the kernels were not compiled for what the arithmetic needs.
LaunchPlan plan_contrastive(const ContrastiveProblem& problem, Arithmetic arithmetic);

size_t workspace_bytes(const ContrastiveProblem& problem, const LaunchPlan& plan);

// `workspace`: workspace_bytes(...) bytes on the device, aligned to 256, free again when the
// stream has passed this call.
void run_contrastive(const ContrastiveProblem& problem, const LaunchPlan& plan, void* workspace,
                     CUstream_st* stream);

void run_prepare_rows(const PrepareRows& rows, CUstream_st* stream);

}  // namespace cac::cuda
