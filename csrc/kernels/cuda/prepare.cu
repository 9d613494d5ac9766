#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/launch.h"

namespace cac::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

// One warp a row.
template <int kCount>
__global__ __launch_bounds__(kThreads) void prepare_rows_kernel(PrepareRows rows) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (row >= rows.num_rows) return;
  LaneRow<kCount> values =
      load_row<kCount>(rows.source_dtype, rows.source, rows.order[row] * rows.row_stride,
                       static_cast<int>(rows.channels), lane);
  if (rows.normalize) normalize_row(values);
  store_row(rows.destination_dtype, rows.destination, row * rows.padded_channels,
            static_cast<int>(rows.padded_channels), lane, values);
}

}  // namespace

void prepare_rows(const PrepareRows& rows, CUstream_st* stream) {
  if (rows.num_rows == 0) return;
  for_row_length(rows.padded_channels, [&](auto count) {
    device::launch(prepare_rows_kernel<decltype(count)::value>,
                   (rows.num_rows + kWarps - 1) / kWarps, kThreads, 0, stream, rows);
  });
}

}  // namespace cac::cuda
