// From tensors to a ContrastiveProblem and back: what all operators share.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <limits>
#include <optional>

#include "kernels/problem.h"

namespace cac {

// Stands for the label of negatives that do not count: no label is larger.
constexpr int64_t kIgnoredKey = std::numeric_limits<int64_t>::max();

at::Tensor with_contiguous_channels(const at::Tensor& features);

// [A] mask of the labels that count; undefined if all do.
at::Tensor not_ignored(const at::Tensor& labels, std::optional<int64_t> ignore_index);

// [A] directions if the first view holds all anchors; undefined masks hide nothing.
at::Tensor all_first_to_second(const at::Tensor& anchors, const at::Tensor& active,
                               const at::Tensor& counted);

// Negatives sorted by label, those that do not count last.
struct Prepared {
  at::Tensor features;   // [N, Cp]
  at::Tensor labels;     // [N]
  at::Tensor num_valid;  // [] how many count
  at::Tensor order;      // [N] row i is row order[i] of those given; undefined: not known
};

// counted: [N] bool; undefined: all count.
Prepared prepare(const at::Tensor& negatives, const at::Tensor& labels, const at::Tensor& counted,
                 bool normalize);

// A scalar on the host, or in the memory of a device that is not asked for it.
struct Temperature {
  double value;
  at::Tensor on_device;  // [] float64; undefined: `value` holds
};

// Which negatives count for each anchor; see ContrastiveProblem. Undefined tensors: null.
struct Intervals {
  at::Tensor begin, end;  // [A]
  bool count = false;
  at::Tensor excluded;                      // [A]
  at::Tensor column_ids;                    // [N]
  at::Tensor excluded_begin, excluded_end;  // [A], with column_ids
};

// The intervals of these labels [A] among the sorted ones.
Intervals intervals_of(const at::Tensor& labels, const at::Tensor& sorted_labels);

struct Question {
  Objective objective;
  Temperature temperature;
  bool normalize;
  double eps;
  bool with_gradient;
  bool with_statistics;
  std::array<at::Tensor, 2> features;  // [A, C]; the second one may be undefined
  at::Tensor direction;                // [A]
  Intervals intervals;
  Prepared negatives;
  at::Tensor leading_rows;                     // undefined without eps
  at::Tensor log_sums;                         // [A]
  at::Tensor column_log_sums, column_weights;  // [N]
};

struct Answer {
  at::Tensor values;      // [A]
  at::Tensor gradients;   // [A, C], or [0, C] without gradient
  at::Tensor statistics;  // [4, A] RowStatistics, or [4, 0]
};

Answer run(const Question& question);

}  // namespace cac
