// Reads the features of anchors, and writes what follows from their sums over the negatives.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/cpu/rows.h"
#include "kernels/problem.h"

namespace cac::cpu {

constexpr double kLog2e = 1.4426950408889634;

struct Lengths {
  double divisor;  // makes the row that was read unit length; 1 without normalization
  double norm;     // of the features
};

// Of one anchor over all negatives that count. Logits are in units of log 2.
struct AnchorSums {
  double total;            // of exp2(logit - shift), or of what TileMode has in its place
  double margin;           // Objective::kMarginSum only
  double shift;            // not read by gradients of columns
  double row_maximum;      // ContrastiveProblem::eps > 0 only
  const double* weighted;  // [C], `stride` apart: sum of the same times the negative; with gradient
  int64_t stride;
};

class AnchorRows {
 public:
  explicit AnchorRows(const ContrastiveProblem& problem) : problem_(problem) {}

  // Reads [C] features of the anchor.
  Lengths read(int64_t anchor, double* row) const {
    return read_view(view_of(anchor), anchor, row);
  }

  // Writes the value, the gradient and the statistics that the objective has.
  void finish(int64_t anchor, const AnchorSums& sums) const;

  // Writes the gradients of anchors that are not active.
  void clear_inactive_gradients(const ParallelFor& parallel_for) const;

  // Of values, gradients and statistics.
  DType value_dtype() const {
    return problem_.feature_dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
  }

 private:
  struct Unit {
    std::vector<double> row;
    Lengths lengths;
  };

  int view_of(int64_t anchor) const { return problem_.direction[anchor] == kSecondToFirst; }
  Lengths read_view(int view, int64_t anchor, double* row) const;
  Unit read_unit(int64_t anchor) const;
  void finish_contrast(int64_t anchor, const AnchorSums& sums) const;
  void finish_margin(int64_t anchor, const AnchorSums& sums) const;
  std::vector<double> scaled(const AnchorSums& sums, double scale) const;
  void write_gradient(int64_t anchor, const Unit& unit, std::vector<double>& gradient) const;
  void write_number(double value, int64_t anchor, void* column) const;

  const ContrastiveProblem& problem_;
};

}  // namespace cac::cpu
