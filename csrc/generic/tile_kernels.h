#pragma once
// TileKernels, instantiated on the vectors and tile registers of one instruction set.

#include "csrc/denormals.h"
#include "csrc/generic/tile_backward.h"
#include "csrc/generic/tile_forward_pass.h"
#include "csrc/generic/tile_matrix_product.h"
#include "csrc/tile_kernels.h"

namespace flash {
namespace {

template <class V, class M>
constexpr TileKernels tile_kernels() {
  TileKernels k{};
  k.supported = M::supported;
  k.forward_plan = tile_forward_plan;
  k.forward_scratch_bytes = tile_forward_scratch_bytes;
  k.forward = [](const ForwardParams& p, int64_t begin, int64_t end, void* scratch) {
    const FlushDenormals flush;
    with_parts_of(p, [&]<int kParts>() { tile_forward<V, M, kParts>(p, begin, end, scratch); });
  };
  k.backward_plan = tile_backward_plan<V>;
  k.backward_scratch_bytes = tile_backward_scratch_bytes<V>;
  k.backward = [](const BackwardParams& p, int64_t step, int64_t begin, int64_t end,
                  void* scratch) {
    const FlushDenormals flush;
    with_parts_of(p,
                  [&]<int kParts>() { tile_backward<V, M, kParts>(p, step, begin, end, scratch); });
  };
  k.product = tile_matrix_product<V, M, 2>;
  return k;
}

}  // namespace
}  // namespace flash
