#pragma once
// Private to ops/: tensors and options as the pointers and strides that kernels take.

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "csrc/params.h"
#include "ops/operator.h"

namespace flash {

/// [B, H, L, D] or [B, L, D] with a contiguous last dimension.
ConstRows rows_of(const at::Tensor& t);
MutableRows mutable_rows_of(const at::Tensor& t);

/// Throws c10::ValueError where the numbers that are kept of each row could not be counted.
Shape shape_of(const Sizes& sizes);

/// Writes the strides of `t` broadcast to `rank` dimensions: 0 where it broadcasts.
void broadcast_strides(const at::Tensor& t, const Sizes& sizes, int64_t rank, int64_t* strides);

/// How numbers of this dtype are stored for the kernels.
Storage storage_of(at::ScalarType dtype);
/// Bytes of a number so stored, where a native one has `native`.
inline int64_t stored_size(Storage storage, int64_t native) {
  return storage == Storage::kNative ? native : 2;
}

/// `options` with slopes and sinks in the kernels' own numbers, which `score_params` wants.
CallOptions with_native_numbers(const CallOptions& options);

/// The options of one call, which has to outlive them.
ScoreParams score_params(const CallOptions& options, const Sizes& sizes, int64_t head_dim,
                         int64_t seed);

/// `elements` of `size` bytes further on.
inline const void* moved(const void* data, int64_t elements, int64_t size) {
  return static_cast<const uint8_t*>(data) + elements * size;
}
inline void* moved(void* data, int64_t elements, int64_t size) {
  return static_cast<uint8_t*>(data) + elements * size;
}
template <class Pointer>
RowsOf<Pointer> moved(const RowsOf<Pointer>& rows, int64_t elements, int64_t size) {
  return {moved(rows.data, elements, size), rows.strides};
}

}  // namespace flash
