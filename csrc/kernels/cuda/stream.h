// The kernel that sends the negatives past the anchors, and the choice of its instance.
#pragma once

#include "kernels/cuda/wave.cuh"
#include "kernels/problem.h"

namespace cac::cuda {

struct StreamParams {
  ContrastiveProblem problem;
  WaveParams wave;
  Schedule schedule;
  Partials partials;
  const int64_t* rows;  // [num_negatives of the wave] the negatives to take; null: all
  float scale;          // log2(e) / temperature: probabilities are powers of 2
  int32_t stages;       // buffers for units, in wide tiles
};

// What a kernel subtracts from the scores, and what it can mask.
enum class StreamKind {
  kBounded,  // a bound of all scores; masks intervals
  kOnline,  // the running maximum; masks intervals or all but them, and what is excluded, and reads
            // the temperature from the device if it is there
  kGiven,   // given numbers (kMarginSum and the gradients of columns); otherwise like kOnline
};

struct StreamVariant {
  using Kernel = void (*)(StreamParams);
  Kernel kernel;
  int threads;
  int shared_bytes;
  int tile_slots;
  int unit_negatives;
  int stages;                // buffers for units
  int channels;              // channels the kernel computes with, >= padded_channels
  int minimum_architecture;  // 80 for sm_80
};

// For `channels` <= kMaxPaddedChannels and a device whose blocks have at most `max_shared_bytes`.
// Without gradient the kernel always keeps the running maximum: it costs little beside one matrix
// product, and the row maximum needs it too. kGiven always has a gradient.
StreamVariant bfloat16_variant(int channels, StreamKind kind, bool gradient, int max_shared_bytes);
StreamVariant float16_variant(int channels, StreamKind kind, bool gradient, int max_shared_bytes);
StreamVariant tensor_float32_variant(int channels, StreamKind kind, bool gradient,
                                     int max_shared_bytes);
StreamVariant float32_variant(int channels, StreamKind kind, bool gradient, int max_shared_bytes);

}  // namespace cac::cuda
