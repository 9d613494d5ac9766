// Schemas of the dispatcher operators torch.ops.cac_ext.*
//
// Sizes: A anchors, N negatives, C channels, Cp channels after padding. Every loss returns the
// gradient beside the value, because one pass over the negatives gives both. The gradient has the
// value's type, so that the caller scales it and rounds once; it is [0, C] if with_gradient is
// false.
//
// ignore_index: anchors of this label have no loss and no gradient; its negatives do not count.
#include <torch/library.h>

TORCH_LIBRARY(cac_ext, m) {
  // -> features [N, Cp] sorted by label, ignored ones last; labels [N] int64; leading_rows
  // [min(N, 8000)] int64; num_valid [] int64, how many are not ignored
  m.def(
      "prepare_negatives(Tensor negatives, Tensor negative_labels, bool normalize, "
      "int? ignore_index=None) -> "
      "(Tensor features, Tensor labels, Tensor leading_rows, Tensor num_valid)");
  // prepare_negatives returns the `negatives`, `negative_labels`, `leading_rows` and `num_valid` of
  // the operators below.
  m.def(
      "masked_logsumexp(Tensor anchors, Tensor negatives, Tensor anchor_labels, "
      "Tensor negative_labels, Tensor num_valid, float temperature, bool normalize, "
      "int? ignore_index, bool with_gradient) -> "
      "(Tensor value, Tensor gradient)");
  m.def(
      "masked_contrastive_loss(Tensor anchors, Tensor positives, Tensor negatives, "
      "Tensor anchor_labels, Tensor negative_labels, Tensor leading_rows, Tensor num_valid, "
      "Tensor? active, float temperature, bool normalize, float eps, int? ignore_index, "
      "bool with_gradient) -> "
      "(Tensor loss, Tensor gradient)");
  // -> loss [2, A], gradient [A, C] of the anchor, direction [A] int8: 0 inactive, 1 the anchor is
  // in features1, 2 it is in features2.
  m.def(
      "directional_contrastive_loss(Tensor features1, Tensor features2, Tensor confidences1, "
      "Tensor confidences2, Tensor pseudo_labels1, Tensor pseudo_labels2, Tensor negatives, "
      "Tensor negative_labels, Tensor leading_rows, Tensor num_valid, float temperature, "
      "float confidence_threshold, bool normalize, float eps, int? ignore_index, "
      "bool with_gradient) -> "
      "(Tensor loss, Tensor gradient, Tensor direction)");
}
