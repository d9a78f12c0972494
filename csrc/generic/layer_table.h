#pragma once
// The LayerKernels of one instruction set, instantiated on its vectors.

#include "csrc/generic/block_product.h"
#include "csrc/generic/complex_tanh.h"
#include "csrc/generic/cross_spectrum.h"
#include "csrc/generic/folding.h"
#include "csrc/generic/gated_norm.h"
#include "csrc/generic/gated_rows.h"
#include "csrc/generic/lane_attention.h"
#include "csrc/generic/linear_rows.h"
#include "csrc/generic/lstm.h"
#include "csrc/generic/moving_average.h"
#include "csrc/generic/norms.h"
#include "csrc/generic/running_sum.h"
#include "csrc/generic/time_pooling.h"
#include "csrc/layer_kernels.h"

namespace flash {
namespace {

template <class V>
constexpr LayerKernels<typename V::Scalar> layer_kernels() {
  using T = typename V::Scalar;
  LayerKernels<T> k{};
  k.block_product = block_product<V>;
  k.linear_rows = linear_rows<V>;
  k.complex_tanh = complex_tanh<V>;
  k.complex_tanh_backward = complex_tanh_backward<V>;
  k.decompose = decompose<T>;
  k.decompose_backward = decompose_backward<T>;
  k.halve_by_maximum = halve_by_maximum<T>;
  k.halve_by_maximum_backward = halve_by_maximum_backward<V>;
  k.activate = activate_rows<V>;
  k.activate_backward = activate_rows_backward<V>;
  k.drop = drop_rows<V>;
  k.drop_backward = drop_rows_backward<V>;
  k.outer = outer_rows<V>;
  k.outer_backward = outer_rows_backward<V>;
  k.gated_norm = gated_norm<V>;
  k.gated_norm_backward = gated_norm_backward<V>;
  k.lane_attention_scores = LaneGroup<V>::scores;
  k.lane_attention_scratch = LaneGroup<V>::scratch;
  k.lane_attention = lane_attention<V>;
  k.lane_attention_backward = lane_attention_backward<V>;
  k.layer_norm = layer_norm<V>;
  k.layer_norm_backward = layer_norm_backward<V>;
  k.affine_sum = affine_sum<V>;
  k.column_moments = column_moments<V>;
  k.batch_norm_sums = batch_norm_sums<V>;
  k.batch_norm_backward = batch_norm_backward<V>;
  k.lstm = lstm<V>;
  k.lstm_backward = lstm_backward<V>;
  k.fold = fold<V>;
  k.unfold = unfold<V>;
  k.fold_transposed = fold_transposed<V>;
  k.unfold_rows = unfold_rows<T>;
  k.add_cross_spectrum = add_cross_spectrum<T>;
  k.running_sum = running_sum<V>;
  k.running_sum_backward = running_sum_backward<V>;
  return k;
}

template <class V>
constexpr LayerKernels<typename V::Scalar> kLayerKernels = layer_kernels<V>();

}  // namespace
}  // namespace flash
