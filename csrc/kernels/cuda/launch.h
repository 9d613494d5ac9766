// The loss on CUDA, free of torch: launches only, no allocation, no host synchronization.
//
// A call runs three kernels. `schedule` collects the active anchors, class by class, and lays out
// the work; `stream` sends the negatives past tiles of anchors and leaves partials; `combine` adds
// these in a fixed order and turns them into losses and gradients.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/problem.h"

struct CUstream_st;

namespace cac::cuda {

// How the factors of the two products are multiplied; sums are float32 in all cases.
enum class Arithmetic : int32_t {
  kBFloat16,       // sm_80; negatives in bfloat16
  kFloat16,        // sm_75; negatives in float16
  kTensorFloat32,  // sm_80; negatives in float32, products of 11-bit significands
  kFloat32,        // sm_75; negatives in float32, float32-accurate by three TF32 products (sm_75:
                   // without matrix units, slowly, and up to 128 channels only)
};

// More channels are not supported. Rows of negatives are padded to whole 16 bytes.
constexpr int64_t kMaxPaddedChannels = 1024;

// How a call is divided. Fields may be lowered before workspace_bytes is called.
struct LaunchPlan {
  Arithmetic arithmetic;
  bool online;          // running maximum instead of the bounded shift; it has masks of every kind
  int64_t tile_slots;   // slots of a tile
  int64_t max_tiles;    // with every anchor active
  int64_t wave_tiles;   // tiles of a wave
  int64_t max_workers;  // thread blocks among which a wave is divided
  int64_t channels;     // row length of the partials' weighted sums
};

// Whether the current device runs this problem: a block has enough shared memory, and float32
// beyond 256 channels has matrix units. All that the limits above permit fits from sm_80 on; on
// sm_75 kFloat32 fits up to 128 channels, kFloat16 up to 640.
bool fits_device(const ContrastiveProblem& problem, Arithmetic arithmetic);

// For the current device. Throws std::runtime_error if the problem exceeds the limits above or the
// kernels were compiled for an architecture that lacks the arithmetic.
LaunchPlan plan_launch(const ContrastiveProblem& problem, Arithmetic arithmetic);

size_t workspace_bytes(const ContrastiveProblem& problem, const LaunchPlan& plan);

// `workspace`: workspace_bytes(...) bytes on the device, aligned to 256, free again when the stream
// has passed this call.
void solve(const ContrastiveProblem& problem, const LaunchPlan& plan, void* workspace,
           CUstream_st* stream);

void prepare_rows(const PrepareRows& rows, CUstream_st* stream);

}  // namespace cac::cuda
