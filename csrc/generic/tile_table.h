#pragma once
// TypedKernels with the calls that TileKernels serve: those of bfloat16 tensors, and of float ones
// that may be taken apart, but for decoding; and products of matrices of float that may be.

#include "csrc/generic/table.h"
#include "csrc/generic/tile_matrix_product.h"
#include "csrc/generic/tile_parts.h"
#include "csrc/tile_kernels.h"

namespace flash {
namespace {

template <class Params>
bool has_tile_elements(const Params& p) {
  if (p.storage == Storage::kBFloat16) return true;
  return p.storage == Storage::kNative && p.float_parts > 0 && scores_fit_parts(p.score);
}

template <class V>
bool uses_tiles(const ForwardParams& p) {
  return has_tile_elements(p) && !Decode<V>::fits(p);
}

inline bool uses_tiles(const BackwardParams& p) {
  return has_tile_elements(p) && p.grad_out_storage == p.storage;
}

template <class V, const TileKernels& kTiles>
constexpr TypedKernels typed_kernels_with_tiles() {
  TypedKernels k = typed_kernels<V>();
  k.forward_plan = [](const ForwardParams& p) {
    return uses_tiles<V>(p) ? kTiles.forward_plan(p) : typed_kernels<V>().forward_plan(p);
  };
  k.forward_scratch_bytes = [](const ForwardParams& p) {
    return uses_tiles<V>(p) ? kTiles.forward_scratch_bytes(p)
                            : typed_kernels<V>().forward_scratch_bytes(p);
  };
  k.forward = [](const ForwardParams& p, int64_t begin, int64_t end, void* scratch) {
    uses_tiles<V>(p) ? kTiles.forward(p, begin, end, scratch)
                     : typed_kernels<V>().forward(p, begin, end, scratch);
  };
  k.backward_plan = [](const BackwardParams& p) {
    return uses_tiles(p) ? kTiles.backward_plan(p) : typed_kernels<V>().backward_plan(p);
  };
  k.backward_scratch_bytes = [](const BackwardParams& p) {
    return uses_tiles(p) ? kTiles.backward_scratch_bytes(p)
                         : typed_kernels<V>().backward_scratch_bytes(p);
  };
  k.backward = [](const BackwardParams& p, int64_t step, int64_t begin, int64_t end,
                  void* scratch) {
    uses_tiles(p) ? kTiles.backward(p, step, begin, end, scratch)
                  : typed_kernels<V>().backward(p, step, begin, end, scratch);
  };
  k.product = [](const ProductParams& p, int64_t begin, int64_t end) {
    uses_tiles(p) ? kTiles.product(p, begin, end) : typed_kernels<V>().product(p, begin, end);
  };
  return k;
}

}  // namespace
}  // namespace flash
