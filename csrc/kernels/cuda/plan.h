// The kernel that brings active anchors together and lays out the line of work (schedule.cuh).
#pragma once

#include "kernels/cuda/schedule.cuh"

namespace cac::cuda {

struct PlanParams {
  const int8_t* direction;          // [A]
  const int64_t* same_class_begin;  // [A]
  const int64_t* same_class_end;    // [A]
  int32_t num_anchors;
  int32_t max_tiles;
  int32_t tile_rows;
  int32_t unit_negatives;
  int64_t num_negatives;
  const int64_t* num_valid;  // [1]; null: all negatives
  Schedule schedule;
};

void launch_plan(const PlanParams& params, cudaStream_t stream);

}  // namespace cac::cuda
