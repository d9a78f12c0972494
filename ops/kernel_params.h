#pragma once
// Private to ops/: tensors and options as the pointers, sizes and strides that the kernels take.

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "csrc/params.h"
#include "ops/attention_checks.h"

namespace flash {

/// Of [B, H, L, D] or [B, L, D] with a contiguous last dimension.
ConstRows rows_of(const at::Tensor& t);
MutableRows mutable_rows_of(const at::Tensor& t);

/// Throws c10::ValueError if batch * heads * queries is too large for the statistics of its rows to
/// be addressed.
Shape shape_of(const Sizes& sizes);

/// Writes the strides of `t` broadcast to `rank` dimensions, 0 where it broadcasts.
void broadcast_strides(const at::Tensor& t, const Sizes& sizes, int64_t rank, int64_t* strides);

/// How the kernels read elements of this dtype.
Storage storage_of(at::ScalarType dtype);
/// Bytes per element in this storage. `native`: those of the type that the kernels compute in.
inline int64_t stored_size(Storage storage, int64_t native) {
  return storage == Storage::kNative ? native : 2;
}

/// `options` with alibi_slopes and sinks in the dtype that the kernels compute in, as
/// `score_params` needs them.
AttentionOptions kernel_options(const AttentionOptions& options);

/// Points into the tensors of `options`, which must outlive it.
ScoreParams score_params(const AttentionOptions& options, const Sizes& sizes, int64_t head_dim,
                         int64_t seed);

/// `data` advanced by this many elements of `size` bytes.
inline const void* advance(const void* data, int64_t elements, int64_t size) {
  return static_cast<const uint8_t*>(data) + elements * size;
}
inline void* advance(void* data, int64_t elements, int64_t size) {
  return static_cast<uint8_t*>(data) + elements * size;
}
template <class Pointer>
RowsOf<Pointer> advance(const RowsOf<Pointer>& rows, int64_t elements, int64_t size) {
  return {advance(rows.data, elements, size), rows.strides};
}

}  // namespace flash
