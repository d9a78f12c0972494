#pragma once
// Access to rows that are stored in the type of computation or in a 16-bit type.

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "csrc/generic/product.h"
#include "csrc/params.h"
#include "csrc/storage.h"

namespace flash {
namespace {

/// Calls f with `data` as a pointer to BFloat16 or Half. `storage` must not be kNative.
template <class Data, class F>
auto with_16_bit(Data* data, Storage storage, F&& f) {
  using Bytes = std::conditional_t<std::is_const_v<Data>, const BFloat16, BFloat16>;
  using Halves = std::conditional_t<std::is_const_v<Data>, const Half, Half>;
  return storage == Storage::kBFloat16 ? f(static_cast<Bytes*>(data))
                                       : f(static_cast<Halves*>(data));
}

/// Calls f with `data` as a pointer to the type that `storage` names; kNative is T.
template <class T, class Data, class F>
auto with_stored(Data* data, Storage storage, F&& f) {
  if constexpr (std::is_same_v<T, float>) {
    if (storage != Storage::kNative) return with_16_bit(data, storage, f);
  }
  using Native = std::conditional_t<std::is_const_v<Data>, const T, T>;
  return f(static_cast<Native*>(data));
}

/// Element `index` of `data`.
template <class T>
T stored_element(const void* data, int64_t index, Storage storage) {
  return with_stored<T>(data, storage, [&](const auto* p) {
    if constexpr (std::is_same_v<decltype(p), const T*>) {
      return p[index];
    } else {
      return to_float(p[index]);
    }
  });
}

/// Loads `count` elements into the first lanes, 0 into the others. Reads nothing past them.
template <class V, class Stored>
typename V::Reg load_first(const Stored* p, int64_t count) {
  if constexpr (std::is_same_v<Stored, typename V::Scalar>) {
    return V::load(p, V::first(count));
  } else {
    Stored elements[V::kWidth] = {};
    for (int64_t i = 0; i < count; ++i) elements[i] = p[i];
    return V::load(elements);
  }
}

/// Stores the first `count` lanes. Writes nothing past them.
template <class V, class Stored>
void store_first(Stored* p, typename V::Reg elements, int64_t count) {
  if constexpr (std::is_same_v<Stored, typename V::Scalar>) {
    V::store(p, elements, V::first(count));
  } else {
    Stored rounded[V::kWidth];
    V::store(rounded, elements);
    for (int64_t i = 0; i < count; ++i) p[i] = rounded[i];
  }
}

/// out[i] = data[first + i], i < count. `storage` must not be kNative.
template <class V>
void load_16_bit(const void* data, int64_t first, int64_t count, Storage storage,
                 typename V::Scalar* out) {
  if constexpr (std::is_same_v<typename V::Scalar, float>) {
    with_16_bit(data, storage, [&](const auto* p) {
      p += first;
      int64_t i = 0;
      for (; i + V::kWidth <= count; i += V::kWidth) V::store(out + i, V::load(p + i));
      for (; i < count; ++i) out[i] = to_float(p[i]);
    });
  }
}

/// data[first + i] = row[i], rounded, i < count. `storage` must not be kNative.
template <class V>
void store_16_bit(const typename V::Scalar* row, int64_t count, Storage storage, void* data,
                  int64_t first) {
  if constexpr (std::is_same_v<typename V::Scalar, float>) {
    with_16_bit(data, storage, [&](auto* p) {
      p += first;
      int64_t i = 0;
      for (; i + V::kWidth <= count; i += V::kWidth) V::store(p + i, V::load(row + i));
      for (; i < count; ++i) round_to(row[i], p + i);
    });
  }
}

/// The offset of row `row` of one (batch, head), in elements.
template <class Pointer>
int64_t row_offset(const RowsOf<Pointer>& rows, int64_t batch, int64_t head, int64_t row) {
  return batch * rows.strides.batch + head * rows.strides.head + row * rows.strides.row;
}

template <class T, class Pointer>
auto* row_pointer(const RowsOf<Pointer>& rows, int64_t batch, int64_t head, int64_t row) {
  using Element = std::conditional_t<std::is_same_v<Pointer, const void*>, const T, T>;
  return static_cast<Element*>(rows.data) + row_offset(rows, batch, head, row);
}

/// Rows `stride` elements apart.
template <class T>
struct RowView {
  const T* data;
  int64_t stride;

  const T* at(int64_t row) const { return data + row * stride; }
};

/// Rows first … first + count - 1 of one (batch, head), `columns` elements each. In place if the
/// storage is kNative; else converted into `copy`.
template <class V>
RowView<typename V::Scalar> read_rows(const ConstRows& rows, Storage storage, int64_t batch,
                                      int64_t head, int64_t first, int64_t count, int64_t columns,
                                      typename V::Scalar* copy) {
  using T = typename V::Scalar;
  if (storage == Storage::kNative) {
    return {row_pointer<T>(rows, batch, head, first), rows.strides.row};
  }
  const int64_t begin = row_offset(rows, batch, head, first);
  for (int64_t i = 0; i < count; ++i) {
    load_16_bit<V>(rows.data, begin + i * rows.strides.row, columns, storage, copy + i * columns);
  }
  return {copy, columns};
}

}  // namespace
}  // namespace flash
