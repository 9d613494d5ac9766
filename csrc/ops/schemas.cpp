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
  // The operators below serve the whole family of losses. `mask` says which negatives count for an
  // anchor: those of a "different" label, of the "same" label, or "all" (no labels are needed).
  // exclude [A] int64: a negative (its row as given) that does not count for this anchor, or -1.
  // temperature []: on the CPU, or on the device, which the host then does not wait for.
  //
  // keys [N, C] in the given order. length []: rows from there on are not in use. -> what
  // prepare_negatives returns, and rank [N] int64, the place of each key among the sorted ones
  m.def(
      "prepare_keys(Tensor keys, Tensor? labels, Tensor? length, bool normalize, "
      "int? ignore_index=None) -> "
      "(Tensor features, Tensor labels, Tensor leading_rows, Tensor num_valid, Tensor rank)");
  // Without positives the log-sum-exp. `keys` are the negatives as given, for their gradient alone.
  // statistics [4, A]: RowStatistics (kernels/problem.h), or [4, 0] without gradient
  m.def(
      "contrast(Tensor anchors, Tensor? positives, Tensor? keys, Tensor temperature, "
      "Tensor? anchor_labels, Tensor? active, Tensor? exclude, Tensor negatives, "
      "Tensor negative_labels, Tensor? rank, Tensor leading_rows, Tensor num_valid, str mask, "
      "bool normalize, float eps, int? ignore_index, bool with_gradient) -> "
      "(Tensor value, Tensor gradient, Tensor statistics)");
  // mean over positives p of log(1 + exp(L - s_p)): L the log-sum-exp over other labels, p the keys
  // of the same label. statistics: L, the weight of L, that of a positive, d value / d temperature
  m.def(
      "pairwise_contrast(Tensor anchors, Tensor? keys, Tensor temperature, Tensor anchor_labels, "
      "Tensor? active, Tensor? exclude, Tensor negatives, Tensor negative_labels, Tensor rank, "
      "Tensor num_valid, bool normalize, int? ignore_index, bool with_gradient) -> "
      "(Tensor value, Tensor gradient, Tensor statistics)");
  // Gradient [N, C] of the keys, of sum_i f_i with df_i / ds_ij = weights_i exp(s_ij - log_sums_i),
  // or weights_i / (1 + exp(s_ij - log_sums_i)) if logistic. negative_labels are the sorted ones.
  m.def(
      "contrast_gradient_of_keys(Tensor keys, Tensor anchors, Tensor temperature, "
      "Tensor? anchor_labels, Tensor? exclude, Tensor negative_labels, Tensor rank, "
      "Tensor num_valid, Tensor log_sums, Tensor weights, str mask, bool logistic, "
      "bool normalize) -> Tensor");
  // Gradient [A, C] of the positives, of -sum_i weights_i s_ip.
  m.def(
      "contrast_gradient_of_positives(Tensor anchors, Tensor positives, Tensor temperature, "
      "Tensor weights, bool normalize) -> Tensor");
  // [num_classes, C] sums of the rows [R, C] of each class, in a fixed order; its adjoint picks
  // rows [R, C] of sums.
  m.def("class_sums(Tensor rows, Tensor classes, SymInt num_classes) -> Tensor");
  m.def("class_rows(Tensor sums, Tensor classes) -> Tensor");
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
