#pragma once
// The loops behind gated_rows.h and lstm.h over plain memory, compiled for several instruction
// sets. Every function handles rows [begin, end); strides are in elements; `scratch` has room for a
// row.

#include <cstdint>

namespace flash::models {

enum class GatedActivation;

template <class T>
struct GatedNormPointers {
  const T *gate, *bias, *skip, *scale, *shift;
  T* statistics;
  const T* row_factors;  ///< or nullptr
  int64_t factor_stride;
  int64_t width;
};

template <class T>
struct GatedNormGradients {
  const T* gradient;
  T *gate, *skip, *factors;  ///< factors: nullptr without row factors
  int64_t factor_stride;
  T* sums;  ///< [4, width]: scale, shift, bias
};

#define FLASH_GATED_LOOPS(T)                                                                     \
  void activate_loop(GatedActivation activation, T* block, const T* shift, int64_t period,       \
                     int64_t first, int64_t width, int64_t begin, int64_t end);                  \
  void activate_backward_loop(GatedActivation activation, T* gradient, const T* activated,       \
                              T* sums, int64_t period, int64_t first, int64_t width,             \
                              int64_t begin, int64_t end);                                       \
  void drop_loop(T* block, const T* bias, const T* factors, int64_t width, int64_t begin,        \
                 int64_t end);                                                                   \
  void drop_backward_loop(T* gradient, const T* dropped, T factor, T* sums, int64_t width,       \
                          int64_t begin, int64_t end);                                           \
  void outer_loop(T* out, const T* x, int64_t x_stride, const T* factor, const T* shift,         \
                  int64_t width, int64_t begin, int64_t end);                                    \
  void outer_backward_loop(const T* gradient, const T* x, int64_t x_stride, const T* factor,     \
                           T* x_gradient, int64_t x_gradient_stride, T* sums, int64_t width,     \
                           int64_t begin, int64_t end);                                          \
  void gated_norm_loop(const GatedNormPointers<T>& block, T* out, T* scratch, int64_t begin,     \
                       int64_t end);                                                             \
  void gated_norm_backward_loop(const GatedNormPointers<T>& block,                               \
                                const GatedNormGradients<T>& gradients, int64_t begin,           \
                                int64_t end);                                                    \
  void lstm_loop(T* gates, const T* bias, const T* last_cell, T* cell, T* hidden, int64_t width, \
                 int64_t begin, int64_t end);                                                    \
  void lstm_backward_loop(const T* gates, const T* cell, const T* last_cell, const T* to_out,    \
                          const T* to_hidden, T* to_cell, T* to_gates, T* bias_sums,             \
                          int64_t width, int64_t begin, int64_t end);
FLASH_GATED_LOOPS(float)
FLASH_GATED_LOOPS(double)
#undef FLASH_GATED_LOOPS

}  // namespace flash::models
