#pragma once
// The TypedKernels of one instruction set, instantiated on its vectors.

#include "csrc/denormals.h"
#include "csrc/generic/backward_pass.h"
#include "csrc/generic/dropout.h"
#include "csrc/generic/forward.h"
#include "csrc/generic/layer_table.h"
#include "csrc/generic/matrix_product.h"
#include "csrc/generic/sparsity.h"
#include "csrc/generic/time_delay.h"
#include "csrc/kernels.h"

namespace flash {
namespace {

template <class V>
constexpr TypedKernels typed_kernels() {
  TypedKernels k{};
  k.forward_plan = forward_plan<V>;
  k.forward_scratch_bytes = forward_scratch_bytes<V>;
  k.forward = [](const ForwardParams& p, int64_t begin, int64_t end, void* scratch) {
    const FlushDenormals flush;
    forward<V>(p, begin, end, scratch);
  };
  k.attends_any = attends_any<V>;
  k.backward_plan = backward_plan<V>;
  k.backward_scratch_bytes = backward_scratch_bytes<V>;
  k.backward = [](const BackwardParams& p, int64_t step, int64_t begin, int64_t end,
                  void* scratch) {
    const FlushDenormals flush;
    backward<V>(p, step, begin, end, scratch);
  };
  k.dropout_plan = dropout_plan;
  k.dropout = dropout<V>;
  k.product_plan = product_plan;
  k.product = matrix_product<V>;
  k.sparsity_plan = sparsity_plan;
  k.sparsity = sparsity<V>;
  k.aggregation_plan = aggregation_plan;
  k.aggregation = aggregation<V>;
  k.correlation_plan = correlation_plan;
  k.correlation = correlation<V>;
  return k;
}

}  // namespace
}  // namespace flash
