// The functions of layer_kernels.h, forwarded to the kernels of the active instruction set.

#include "csrc/layer_kernels.h"

#include <flash_attention/layer_kernels.h>

#include <type_traits>

#include "csrc/dispatch.h"
#include "ops/kernel_selection.h"

namespace flash::kernels {
namespace {

template <class T>
const LayerKernels<T>& active() {
  const KernelTable& table = active_table("flash::kernels");
  if constexpr (std::is_same_v<T, float>) {
    return *table.layers_f32;
  } else {
    return *table.layers_f64;
  }
}

template <class T>
void run(DropoutKind kind, const DropoutBlock& block, const T* x, const T* other, T* out) {
  DropoutParams p = {};
  p.kind = kind;
  p.input = x, p.other = other, p.out = out;
  p.first = block.first, p.elements = block.count;
  p.dropout = block.p;
  p.seed = static_cast<uint64_t>(block.seed);
  const KernelTable& table = active_table("flash::kernels");
  const TypedKernels& kernels = std::is_same_v<T, float> ? table.f32 : table.f64;
  kernels.dropout(p, 0, kernels.dropout_plan(p).units);
}

flash::GatedActivation in_kernels(GatedActivation activation) {
  switch (activation) {
    case GatedActivation::kRelu:
      return flash::GatedActivation::kRelu;
    case GatedActivation::kSoftplus:
      return flash::GatedActivation::kSoftplus;
    case GatedActivation::kTanh:
      return flash::GatedActivation::kTanh;
    case GatedActivation::kSelu:
      return flash::GatedActivation::kSelu;
    case GatedActivation::kLeakyRelu:
      return flash::GatedActivation::kLeakyRelu;
    case GatedActivation::kSigmoid:
      return flash::GatedActivation::kSigmoid;
    case GatedActivation::kElu:
      return flash::GatedActivation::kElu;
    case GatedActivation::kGelu:
      return flash::GatedActivation::kGelu;
  }
  TORCH_INTERNAL_ASSERT(false, "no such activation");
}

template <class T>
LaneAttentionParams<T> in_kernels(const LaneAttention<T>& call) {
  return {.query = call.query,
          .key = call.key,
          .value = call.value,
          .query_problem = call.query_problem,
          .key_problem = call.key_problem,
          .value_problem = call.value_problem,
          .out_problem = call.out_problem,
          .query_row = call.query_row,
          .key_row = call.key_row,
          .value_row = call.value_row,
          .out_row = call.out_row,
          .problems = call.problems,
          .queries = call.queries,
          .keys = call.keys,
          .head_dim = call.head_dim,
          .value_dim = call.value_dim,
          .scale = call.scale,
          .scores = call.scores};
}

template <class T>
flash::NormRows<T> in_kernels(const NormRows<T>& norm) {
  return {.x = norm.x,
          .mean = norm.mean,
          .reciprocal = norm.reciprocal,
          .weight = norm.weight,
          .rows = norm.rows,
          .width = norm.width};
}

template <class T>
GatedNormParams<T> in_kernels(const GatedNorm<T>& block, int64_t width) {
  return {.gate = block.gate,
          .bias = block.bias,
          .skip = block.skip,
          .scale = block.scale,
          .shift = block.shift,
          .statistics = block.statistics,
          .row_factors = block.row_factors,
          .factor_stride = block.factor_stride,
          .width = width};
}

}  // namespace

bool have_vectors() { return &active_table("flash::kernels") != &scalar_kernels(); }

template <class T>
void block_product(const ProductSizes& sizes, LeftFactor<T> a, RowMatrix<const T> b,
                   RowMatrix<T> c) {
  ProductParams p = {};
  p.left = a.data, p.left_row = a.row, p.left_step = a.step;
  p.right = b.data, p.right_row = b.stride, p.right_column = 1;
  p.out = c.data, p.out_row = c.stride;
  p.rows = sizes.rows, p.depth = sizes.depth, p.columns = sizes.columns;
  p.add = sizes.accumulate;
  active<T>().block_product(p);
}

template <class T>
void linear_rows(const LinearRows<T>& call) {
  active<T>().linear_rows({.x = call.x,
                           .x_row = call.x_row,
                           .weight = call.weight,
                           .weight_row = call.weight_row,
                           .bias = call.bias,
                           .out = call.out,
                           .out_row = call.out_row,
                           .rows = call.rows,
                           .columns = call.columns,
                           .depth = call.depth});
}

template <class T>
void complex_tanh(const T* in, T* out, int64_t count) {
  active<T>().complex_tanh(in, out, count);
}

template <class T>
void complex_tanh_backward(const T* result, const T* gradient, T* out, int64_t count) {
  active<T>().complex_tanh_backward(result, gradient, out, count);
}

template <class T>
void add_cross_spectrum(const T* query, const T* key, T* sum, int64_t channels,
                        int64_t frequencies) {
  active<T>().add_cross_spectrum(query, key, sum, channels, frequencies);
}

template <class T>
void decompose(const T* x, const T* trend_before, T* seasonal, T* trend, int64_t times,
               int64_t channels, int64_t reach) {
  active<T>().decompose({times, channels, reach}, x, trend_before, seasonal, trend);
}

template <class T>
void decompose_backward(const T* seasonal_gradient, const T* trend_gradient, T* x_gradient,
                        int64_t times, int64_t channels, int64_t reach) {
  active<T>().decompose_backward({times, channels, reach}, seasonal_gradient, trend_gradient,
                                 x_gradient);
}

template <class T>
void halve_by_maximum(const T* x, T* out, uint8_t* which, int64_t times, int64_t channels) {
  active<T>().halve_by_maximum(x, out, which, times, channels);
}

template <class T>
void halve_by_maximum_backward(const T* gradient, const uint8_t* which, T* x_gradient,
                               int64_t times, int64_t channels) {
  active<T>().halve_by_maximum_backward(gradient, which, x_gradient, times, channels);
}

template <class T>
void running_sum(const T* value, int64_t stride, T* sum, int64_t times, int64_t channels) {
  active<T>().running_sum(value, stride, sum, times, channels);
}

template <class T>
void running_sum_backward(const T* gradient, const bool* skipped, T* value_gradient, int64_t stride,
                          int64_t times, int64_t channels) {
  active<T>().running_sum_backward(gradient, skipped, value_gradient, stride, times, channels);
}

template <class T>
void fold(const Folding& folding, const T* x, T* sums, T* differences) {
  active<T>().fold({folding.times, folding.channels, folding.row}, x, sums, differences);
}

template <class T>
void unfold(const Folding& folding, const T* sums, const T* differences, T* x) {
  active<T>().unfold({folding.times, folding.channels, folding.row}, sums, differences, x);
}

template <class T>
void fold_transposed(const Folding& folding, const T* x, T* sums, T* differences) {
  active<T>().fold_transposed({folding.times, folding.channels, folding.row}, x, sums, differences);
}

template <class T>
void unfold_rows(const Folding& folding, const T* sums, const T* differences, T* x) {
  active<T>().unfold_rows({folding.times, folding.channels, folding.row}, sums, differences, x);
}

template <class T>
void activate(GatedActivation activation, T* block, const T* shift, T* argument, int64_t period,
              int64_t first, int64_t rows, int64_t width) {
  active<T>().activate(in_kernels(activation), block, shift, argument, period, first, rows, width);
}

template <class T>
void activate_backward(GatedActivation activation, T* gradient, const T* forward, T* sums,
                       int64_t period, int64_t first, int64_t rows, int64_t width) {
  active<T>().activate_backward(in_kernels(activation), gradient, forward, sums, period, first,
                                rows, width);
}

template <class T>
void drop(T* block, const T* bias, const T* factors, int64_t rows, int64_t width) {
  active<T>().drop(block, bias, factors, rows, width);
}

template <class T>
void drop_backward(T* gradient, const T* dropped, T factor, T* sums, int64_t rows, int64_t width) {
  active<T>().drop_backward(gradient, dropped, factor, sums, rows, width);
}

template <class T>
void outer(T* out, const T* x, int64_t x_stride, const T* factor, const T* shift, int64_t rows,
           int64_t width) {
  active<T>().outer(out, x, x_stride, factor, shift, rows, width);
}

template <class T>
void outer_backward(const T* gradient, const T* x, int64_t x_stride, const T* factor, T* x_gradient,
                    int64_t x_gradient_stride, T* sums, int64_t rows, int64_t width) {
  active<T>().outer_backward(gradient, x, x_stride, factor, x_gradient, x_gradient_stride, sums,
                             rows, width);
}

template <class T>
void gated_norm(const GatedNorm<T>& block, T* out, T* scratch, int64_t rows, int64_t width) {
  active<T>().gated_norm(in_kernels(block, width), out, scratch, rows);
}

template <class T>
void gated_norm_backward(const GatedNorm<T>& block, const GatedNormGradients<T>& gradients,
                         int64_t rows, int64_t width) {
  active<T>().gated_norm_backward(in_kernels(block, width),
                                  {.out = gradients.out,
                                   .gate = gradients.gate,
                                   .skip = gradients.skip,
                                   .row_factors = gradients.row_factors,
                                   .factor_stride = gradients.factor_stride,
                                   .sums = gradients.sums},
                                  rows);
}

template <class T>
void dropout(const DropoutBlock& block, const T* x, T* out) {
  run(DropoutKind::kPlain, block, x, static_cast<const T*>(nullptr), out);
}

template <class T>
void dropout_add(const DropoutBlock& block, const T* x, const T* residual, T* out) {
  run(DropoutKind::kAdd, block, x, residual, out);
}

template <class T>
int64_t lane_attention_scores(const LaneAttention<T>& call) {
  return active<T>().lane_attention_scores(in_kernels(call));
}

template <class T>
int64_t lane_attention_scratch(const LaneAttention<T>& call) {
  return active<T>().lane_attention_scratch(in_kernels(call));
}

template <class T>
void lane_attention(const LaneAttention<T>& call, T* out, T* scratch) {
  active<T>().lane_attention(in_kernels(call), out, scratch);
}

template <class T>
void lane_attention_backward(const LaneAttention<T>& call,
                             const LaneAttentionGradients<T>& gradients, T* scratch) {
  active<T>().lane_attention_backward(in_kernels(call),
                                      {.out = gradients.out,
                                       .query = gradients.query,
                                       .key = gradients.key,
                                       .value = gradients.value},
                                      scratch);
}

template <class T>
void layer_norm(const T* x, const T* weight, const T* bias, T epsilon, int64_t rows, int64_t width,
                T* out, T* mean, T* reciprocal) {
  active<T>().layer_norm(x, weight, bias, epsilon, rows, width, out, mean, reciprocal);
}

template <class T>
void layer_norm_backward(const NormRows<T>& norm, const T* gradient, T* x_gradient, T* sums) {
  active<T>().layer_norm_backward(in_kernels(norm), gradient, x_gradient, sums);
}

template <class T>
void affine_sum(const T* x, const T* residual, const T* factor, const T* shift, int64_t rows,
                int64_t width, T* out) {
  active<T>().affine_sum(x, residual, factor, shift, rows, width, out);
}

template <class T>
void column_moments(const T* x, int64_t rows, int64_t width, T* moments) {
  active<T>().column_moments(x, rows, width, moments);
}

template <class T>
void batch_norm_sums(const NormRows<T>& norm, const T* gradient, T* sums) {
  active<T>().batch_norm_sums(in_kernels(norm), gradient, sums);
}

template <class T>
void batch_norm_backward(const NormRows<T>& norm, const T* gradient, const T* means,
                         T* x_gradient) {
  active<T>().batch_norm_backward(in_kernels(norm), gradient, means, x_gradient);
}

template <class T>
void lstm(T* gates, const T* bias, const T* last_cell, T* cell, T* hidden, int64_t rows,
          int64_t width) {
  active<T>().lstm(gates, bias, last_cell, cell, hidden, rows, width);
}

template <class T>
void lstm_backward(const T* gates, const T* cell, const T* last_cell, const T* to_out,
                   const T* to_hidden, T* to_cell, T* to_gates, T* bias_sums, int64_t rows,
                   int64_t width) {
  active<T>().lstm_backward(gates, cell, last_cell, to_out, to_hidden, to_cell, to_gates, bias_sums,
                            rows, width);
}

#define FLASH_INSTANTIATE(T)                                                                       \
  template void block_product(const ProductSizes&, LeftFactor<T>, RowMatrix<const T>,              \
                              RowMatrix<T>);                                                       \
  template void linear_rows(const LinearRows<T>&);                                                 \
  template void complex_tanh(const T*, T*, int64_t);                                               \
  template void complex_tanh_backward(const T*, const T*, T*, int64_t);                            \
  template void add_cross_spectrum(const T*, const T*, T*, int64_t, int64_t);                      \
  template void decompose(const T*, const T*, T*, T*, int64_t, int64_t, int64_t);                  \
  template void decompose_backward(const T*, const T*, T*, int64_t, int64_t, int64_t);             \
  template void halve_by_maximum(const T*, T*, uint8_t*, int64_t, int64_t);                        \
  template void halve_by_maximum_backward(const T*, const uint8_t*, T*, int64_t, int64_t);         \
  template void running_sum(const T*, int64_t, T*, int64_t, int64_t);                              \
  template void running_sum_backward(const T*, const bool*, T*, int64_t, int64_t, int64_t);        \
  template void fold(const Folding&, const T*, T*, T*);                                            \
  template void unfold(const Folding&, const T*, const T*, T*);                                    \
  template void fold_transposed(const Folding&, const T*, T*, T*);                                 \
  template void unfold_rows(const Folding&, const T*, const T*, T*);                               \
  template void activate(GatedActivation, T*, const T*, T*, int64_t, int64_t, int64_t, int64_t);   \
  template void activate_backward(GatedActivation, T*, const T*, T*, int64_t, int64_t, int64_t,    \
                                  int64_t);                                                        \
  template void drop(T*, const T*, const T*, int64_t, int64_t);                                    \
  template void drop_backward(T*, const T*, T, T*, int64_t, int64_t);                              \
  template void outer(T*, const T*, int64_t, const T*, const T*, int64_t, int64_t);                \
  template void outer_backward(const T*, const T*, int64_t, const T*, T*, int64_t, T*, int64_t,    \
                               int64_t);                                                           \
  template void gated_norm(const GatedNorm<T>&, T*, T*, int64_t, int64_t);                         \
  template void gated_norm_backward(const GatedNorm<T>&, const GatedNormGradients<T>&, int64_t,    \
                                    int64_t);                                                      \
  template void dropout(const DropoutBlock&, const T*, T*);                                        \
  template void dropout_add(const DropoutBlock&, const T*, const T*, T*);                          \
  template int64_t lane_attention_scores(const LaneAttention<T>&);                                 \
  template int64_t lane_attention_scratch(const LaneAttention<T>&);                                \
  template void lane_attention(const LaneAttention<T>&, T*, T*);                                   \
  template void lane_attention_backward(const LaneAttention<T>&, const LaneAttentionGradients<T>&, \
                                        T*);                                                       \
  template void layer_norm(const T*, const T*, const T*, T, int64_t, int64_t, T*, T*, T*);         \
  template void layer_norm_backward(const NormRows<T>&, const T*, T*, T*);                         \
  template void affine_sum(const T*, const T*, const T*, const T*, int64_t, int64_t, T*);          \
  template void column_moments(const T*, int64_t, int64_t, T*);                                    \
  template void batch_norm_sums(const NormRows<T>&, const T*, T*);                                 \
  template void batch_norm_backward(const NormRows<T>&, const T*, const T*, T*);                   \
  template void lstm(T*, const T*, const T*, T*, T*, int64_t, int64_t);                            \
  template void lstm_backward(const T*, const T*, const T*, const T*, const T*, T*, T*, T*,        \
                              int64_t, int64_t);
FLASH_INSTANTIATE(float)
FLASH_INSTANTIATE(double)
#undef FLASH_INSTANTIATE

}  // namespace flash::kernels
