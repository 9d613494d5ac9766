// The problem that every backend solves, free of torch: raw pointers, sizes, strides.
//
// One problem holds the anchors of both directions of the directional contrastive loss (paper
// Eq. 6-8). An active pixel is an anchor in exactly one direction, because the comparison of the
// confidences is strict. So A pixels need one loss and one gradient each, not two.
//
// The words of both kernels:
//   row          the channels of one anchor, positive or negative
//   slot         place of an anchor; active anchors fill the first slots, class by class
//   tile         consecutive slots, multiplied together (on the CPU the lanes of vector registers)
//   unit         consecutive negatives, multiplied together
//   wide         of tiles with more than 256 channels, which warps divide among each other (CUDA)
//   strip        the half or the whole of a unit in wide tiles: 16 negatives
//   interval     negatives [begin, end) of an anchor's own class, which are masked for it
//   span         the negatives that a tile meets, and those that it may have to mask
//   schedule     the anchors and intervals of all slots, the spans of all tiles
//   worker       a task on the CPU, a thread block on CUDA
//   share        the tiles and units that one worker multiplies
//   wave         the tiles of one launch (CUDA)
//   shift        what is subtracted from the scores of a slot before exp2: a bound of them or, in
//                the online mode, their running maximum
//   partial      the sums of one share over one tile, divided by 2^shift; added in a fixed order
//   row maximum  largest logit of an anchor over the leading negatives and its positive (eps > 0)
//
// The gradient of the negatives is the same problem with the two sides exchanged: the rows whose
// gradient is wanted take the place of the anchors, and the anchors that of the negatives, with the
// logarithm of its sum and a weight for each (ContrastiveProblem::column_log_sums).
#pragma once

#include <cstdint>

namespace cac {

enum class DType : int32_t { kFloat64, kFloat32, kBFloat16, kFloat16 };

enum class Objective : int32_t {
  kLogSumExp,        // log sum_j [y_j != y_i] exp(cos(a_i, n_j) / tau)
  kContrastiveLoss,  // -log r(a, p) / (r(a, p) + sum_j [y_j != y_i] r(a, n_j))
  kMarginSum,        // sum_j [j counts for i] log(1 + exp(L_i - s_ij)), s_ij = cos(a_i, n_j) / tau
  // No value; the gradient of row i is that of  sum_j [j counts for i] f_j(s_ij)  with
  kExponentialGradient,  // f'_j(s) = w_j exp(s - L_j)
  kLogisticGradient,     // f'_j(s) = w_j / (1 + exp(s - L_j))
};

// Values of ContrastiveProblem::direction, from the anchor to the positive.
constexpr int8_t kInactive = 0;       // loss 0, gradient 0, costs nothing
constexpr int8_t kFirstToSecond = 1;  // features[0] holds the anchor, features[1] the positive
constexpr int8_t kSecondToFirst = 2;  // features[1] holds the anchor, features[0] the positive

// What the gradients of everything but the anchors need; pointers to [A]. l: the value.
struct RowStatistics {
  void* log_sums;               // log of the sum over the negatives that count
  void* negative_weights;       // dl / d log_sum; kMarginSum: sum_j 1 / (1 + exp(s_ij - L_i))
  void* positive_weights;       // -dl / d s_ip
  void* temperature_gradients;  // dl / d tau, L_i and the row maximum held still
};

struct ContrastiveProblem {
  Objective objective;
  // Features of the same A pixels in the two views; channels are contiguous. kLogSumExp reads
  // features[0] only.
  const void* features[2];  // [A, C]
  int64_t row_strides[2];   // in elements
  DType feature_dtype;
  int64_t num_anchors;      // A
  int64_t channels;         // C
  const int8_t* direction;  // [A]

  // Prepared negatives: unit length (if `normalize`), sorted by label, channels padded with zeros,
  // contiguous. [same_class_begin[i], same_class_end[i]) is the interval of anchor i.
  const void* negatives;  // [N, padded_channels]
  DType negative_dtype;
  int64_t num_negatives;    // N
  int64_t padded_channels;  // Cp >= C
  // One number in the device's memory: negatives from *num_valid on are ignored. Null: all count.
  const int64_t* num_valid;
  const int64_t* same_class_begin;  // [A]
  const int64_t* same_class_end;    // [A]
  // Which negatives count for an anchor: those outside of its interval, or those inside.
  bool interval_counts;
  // Negative j does not count for anchor i if its id is excluded[i]. The id is j, or column_ids[j]
  // if given; ids below 0 exclude nothing. excluded may be null.
  const int64_t* excluded;    // [A]
  const int64_t* column_ids;  // [N]
  // With column_ids: all columns with the id excluded[i] are inside [begin[i], end[i]).
  const int64_t* excluded_begin;  // [A]
  const int64_t* excluded_end;    // [A]

  // Given numbers, in the type of `values`: L and w of the objectives that have them.
  const void* log_sums;         // [A], kMarginSum
  const void* column_log_sums;  // [N], gradients of columns
  const void* column_weights;   // [N], gradients of columns

  double temperature;
  // One number in the device's memory that the host does not read; null: `temperature` holds.
  const double* temperature_on_device;
  bool normalize;  // false: rows of any length are compared by their dot products

  // eps > 0 repeats the authors' code, which takes the row maximum over the positive and the first
  // negatives in the given order. leading_rows are the rows of these after sorting. Valid ones come
  // first, so the first min(num_leading_rows, *num_valid) count.
  double eps;
  const int64_t* leading_rows;  // [num_leading_rows]
  int64_t num_leading_rows;

  // Outputs. gradients: of values[i] with respect to the anchor's features; null: not wanted.
  void* values;     // [A], double for kFloat64 features, else float
  void* gradients;  // [A, C] contiguous, in the type of values: the caller scales, then rounds once
  // Of each anchor, in the type of values, 0 for an inactive one; null: not wanted. Only with
  // gradients.
  RowStatistics statistics;
};

// Rows of `source`, in the given order, made unit length (if `normalize`), cast and zero-padded.
struct PrepareRows {
  const void* source;  // [N, C], channels contiguous
  int64_t row_stride;  // in elements
  DType source_dtype;
  const int64_t* order;  // [N], row i of the result is row order[i] of the source
  int64_t num_rows;
  int64_t channels;
  bool normalize;
  void* destination;  // [N, padded_channels]
  DType destination_dtype;
  int64_t padded_channels;
};

// Below this temperature exp((cos - 1) / tau) could leave float32's range, so the kernels keep a
// running maximum; above it the bound |cos| <= 1 makes the constant shift 1 / tau safe. Rows that
// are not normalized need the running maximum unless their lengths prove the same bound.
constexpr double kBoundedShiftTemperature = 2.0 / 80.0;

}  // namespace cac
