#pragma once
// Which block of queries writes the rows of a gradient first.

#include <cstdint>

#include "csrc/generic/key_ranges.h"
#include "csrc/generic/stored_rows.h"
#include "csrc/params.h"

namespace flash {
namespace {

/// The gradients of which a block of queries writes its rows first: it stores its contribution, or
/// zeros where it has none. To the others it adds.
struct Stores {
  bool query = false;
  bool key = false;
  bool value = false;
};

template <class T>
void clear_rows(const MutableRows& rows, int64_t batch, int64_t head, Range range,
                int64_t columns) {
  if (rows.data == nullptr) return;
  for (int64_t i = range.begin; i < range.end; ++i) {
    T* row = row_pointer<T>(rows, batch, head, i);
    for (int64_t c = 0; c < columns; ++c) row[c] = T(0);
  }
}

/// Clears what query head `head` stores: its rows of dQ, and the rows of dK and dV of its heads.
template <class T>
void clear_stored(const BackwardParams& p, int64_t batch, int64_t head, Range queries, Range keys,
                  Stores stores) {
  const Shape& s = p.shape;
  if (stores.query) clear_rows<T>(p.grad_query, batch, head, queries, s.head_dim);
  if (stores.key) {
    clear_rows<T>(p.grad_key, batch, head / (s.heads / s.key_heads), keys, s.head_dim);
  }
  if (stores.value) {
    clear_rows<T>(p.grad_value, batch, head / (s.heads / s.value_heads), keys, s.value_dim);
  }
}

}  // namespace
}  // namespace flash
