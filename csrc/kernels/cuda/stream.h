// The kernel that sends the negatives past the anchors, and which of its instances serves a call.
#pragma once

#include "kernels/contrastive.h"
#include "kernels/cuda/schedule.cuh"

namespace cac::cuda {

struct StreamParams {
  ContrastiveProblem problem;
  WaveParams wave;
  Schedule schedule;
  Partials partials;
  const int64_t* rows;  // [num_negatives of the wave] rows of the negatives to take; null: all
  float scale;          // log2(e) / temperature: probabilities are powers of 2
};

struct StreamVariant {
  void (*kernel)(StreamParams);
  int threads;
  int shared_bytes;
  int tile_rows;
  int unit_negatives;
  int channels;              // channels the kernel computes with, >= padded_channels
  int minimum_architecture;  // 80 for sm_80
};

// For `channels` <= 256. Without gradient there is only the kernel with the running maximum: the
// maximum costs little beside one matrix product, and it serves the row maximum of eps > 0 too.
StreamVariant bfloat16_variant(int channels, bool online, bool gradient);
StreamVariant float16_variant(int channels, bool online, bool gradient);
StreamVariant tensor_float32_variant(int channels, bool online, bool gradient);
StreamVariant float32_variant(int channels, bool online, bool gradient);

}  // namespace cac::cuda
