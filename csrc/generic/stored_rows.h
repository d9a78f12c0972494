#pragma once
// Rows of numbers as the kernels compute with them, whatever they are stored as.

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "csrc/generic/product.h"
#include "csrc/params.h"
#include "csrc/storage.h"

namespace flash {
namespace {

/// Calls f(pointer to a number of 16 bits) with `data` as what `storage` says, which is not native.
template <class Data, class F>
auto with_narrow(Data* data, Storage storage, F&& f) {
  using Bytes = std::conditional_t<std::is_const_v<Data>, const BFloat16, BFloat16>;
  using Halves = std::conditional_t<std::is_const_v<Data>, const Half, Half>;
  return storage == Storage::kBFloat16 ? f(static_cast<Bytes*>(data))
                                       : f(static_cast<Halves*>(data));
}

/// Calls f(pointer to a number) with `data` as what `storage` says; native is T.
template <class T, class Data, class F>
auto with_stored(Data* data, Storage storage, F&& f) {
  if constexpr (std::is_same_v<T, float>) {
    if (storage != Storage::kNative) return with_narrow(data, storage, f);
  }
  using Native = std::conditional_t<std::is_const_v<Data>, const T, T>;
  return f(static_cast<Native*>(data));
}

/// Number `index` of `data`.
template <class T>
T stored_number(const void* data, int64_t index, Storage storage) {
  return with_stored<T>(data, storage, [&](const auto* p) {
    if constexpr (std::is_same_v<decltype(p), const T*>) {
      return p[index];
    } else {
      return to_float(p[index]);
    }
  });
}

/// The first `count` numbers of a register and zeros, from memory that ends behind them.
template <class V, class Stored>
typename V::Reg load_first(const Stored* p, int64_t count) {
  if constexpr (std::is_same_v<Stored, typename V::Scalar>) {
    return V::load(p, V::first(count));
  } else {
    Stored numbers[V::kWidth] = {};
    for (int64_t i = 0; i < count; ++i) numbers[i] = p[i];
    return V::load(numbers);
  }
}

/// The way back.
template <class V, class Stored>
void store_first(Stored* p, typename V::Reg numbers, int64_t count) {
  if constexpr (std::is_same_v<Stored, typename V::Scalar>) {
    V::store(p, numbers, V::first(count));
  } else {
    Stored rounded[V::kWidth];
    V::store(rounded, numbers);
    for (int64_t i = 0; i < count; ++i) p[i] = rounded[i];
  }
}

/// out[i] = number first + i of `data`, which is not native, i < count.
template <class V>
void widen(const void* data, int64_t first, int64_t count, Storage storage,
           typename V::Scalar* out) {
  if constexpr (std::is_same_v<typename V::Scalar, float>) {
    with_narrow(data, storage, [&](const auto* p) {
      p += first;
      int64_t i = 0;
      for (; i + V::kWidth <= count; i += V::kWidth) V::store(out + i, V::load(p + i));
      for (; i < count; ++i) out[i] = to_float(p[i]);
    });
  }
}

/// The way back.
template <class V>
void narrow(const typename V::Scalar* row, int64_t count, Storage storage, void* data,
            int64_t first) {
  if constexpr (std::is_same_v<typename V::Scalar, float>) {
    with_narrow(data, storage, [&](auto* p) {
      p += first;
      int64_t i = 0;
      for (; i + V::kWidth <= count; i += V::kWidth) V::store(p + i, V::load(row + i));
      for (; i < count; ++i) round_to(row[i], p + i);
    });
  }
}

/// Where row `row` of one (batch, head) begins, in elements.
template <class Pointer>
int64_t row_offset(const RowsOf<Pointer>& rows, int64_t batch, int64_t head, int64_t row) {
  return batch * rows.strides.batch + head * rows.strides.head + row * rows.strides.row;
}

template <class T, class Pointer>
auto* row_pointer(const RowsOf<Pointer>& rows, int64_t batch, int64_t head, int64_t row) {
  using Element = std::conditional_t<std::is_same_v<Pointer, const void*>, const T, T>;
  return static_cast<Element*>(rows.data) + row_offset(rows, batch, head, row);
}

/// Rows that lie `stride` numbers apart.
template <class T>
struct RowView {
  const T* data;
  int64_t stride;

  const T* at(int64_t row) const { return data + row * stride; }
};

/// `count` rows of `columns` numbers of one (batch, head) from row `first` on: in place if they are
/// native, else as a copy in `copy`.
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
    widen<V>(rows.data, begin + i * rows.strides.row, columns, storage, copy + i * columns);
  }
  return {copy, columns};
}

}  // namespace
}  // namespace flash
