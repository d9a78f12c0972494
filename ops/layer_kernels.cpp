// The functions of layer_kernels.h, forwarded to the kernels of the active instruction set.

#include "csrc/layer_kernels.h"

#include <flash_attention/layer_kernels.h>

#include <type_traits>

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

#define FLASH_INSTANTIATE(T)                                                                     \
  template void block_product(const ProductSizes&, LeftFactor<T>, RowMatrix<const T>,            \
                              RowMatrix<T>);                                                     \
  template void complex_tanh(const T*, T*, int64_t);                                             \
  template void complex_tanh_backward(const T*, const T*, T*, int64_t);                          \
  template void add_cross_spectrum(const T*, const T*, T*, int64_t, int64_t);                    \
  template void decompose(const T*, const T*, T*, T*, int64_t, int64_t, int64_t);                \
  template void decompose_backward(const T*, const T*, T*, int64_t, int64_t, int64_t);           \
  template void halve_by_maximum(const T*, T*, uint8_t*, int64_t, int64_t);                      \
  template void halve_by_maximum_backward(const T*, const uint8_t*, T*, int64_t, int64_t);       \
  template void running_sum(const T*, int64_t, T*, int64_t, int64_t);                            \
  template void running_sum_backward(const T*, const bool*, T*, int64_t, int64_t, int64_t);      \
  template void fold(const Folding&, const T*, T*, T*);                                          \
  template void unfold(const Folding&, const T*, const T*, T*);                                  \
  template void fold_transposed(const Folding&, const T*, T*, T*);                               \
  template void unfold_rows(const Folding&, const T*, const T*, T*);                             \
  template void activate(GatedActivation, T*, const T*, T*, int64_t, int64_t, int64_t, int64_t); \
  template void activate_backward(GatedActivation, T*, const T*, T*, int64_t, int64_t, int64_t,  \
                                  int64_t);                                                      \
  template void drop(T*, const T*, const T*, int64_t, int64_t);                                  \
  template void drop_backward(T*, const T*, T, T*, int64_t, int64_t);                            \
  template void outer(T*, const T*, int64_t, const T*, const T*, int64_t, int64_t);              \
  template void outer_backward(const T*, const T*, int64_t, const T*, T*, int64_t, T*, int64_t,  \
                               int64_t);                                                         \
  template void gated_norm(const GatedNorm<T>&, T*, T*, int64_t, int64_t);                       \
  template void gated_norm_backward(const GatedNorm<T>&, const GatedNormGradients<T>&, int64_t,  \
                                    int64_t);                                                    \
  template void lstm(T*, const T*, const T*, T*, T*, int64_t, int64_t);                          \
  template void lstm_backward(const T*, const T*, const T*, const T*, const T*, T*, T*, T*,      \
                              int64_t, int64_t);
FLASH_INSTANTIATE(float)
FLASH_INSTANTIATE(double)
#undef FLASH_INSTANTIATE

}  // namespace flash::kernels
