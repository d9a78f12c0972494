#include "layers/block_product.h"

#include <algorithm>

// Vectors are passed to functions here, but only to such as are inlined.
#pragma GCC diagnostic ignored "-Wpsabi"

namespace flash::models {
namespace {

template <class T, int kLanes>
struct Vector {
  using Register [[gnu::vector_size(kLanes * sizeof(T))]] = T;
  using Memory [[gnu::vector_size(kLanes * sizeof(T)), gnu::aligned(alignof(T)), gnu::may_alias]] =
      T;

  [[gnu::always_inline]] static Register load(const T* p) {
    return *reinterpret_cast<const Memory*>(p);
  }
  [[gnu::always_inline]] static void store(T* p, const Register& x) {
    *reinterpret_cast<Memory*>(p) = x;
  }
};

/// A tile of kRows rows and kVectors vectors in registers, of which the last may be cut off.
template <class T, int kLanes, int kRows, int kVectors>
[[gnu::always_inline]] inline void multiply_tile(const ProductSizes& sizes, LeftFactor<T> a,
                                                 RowMatrix<const T> b, RowMatrix<T> c,
                                                 int64_t columns) {
  using V = Vector<T, kLanes>;
  typename V::Register tile[kRows][kVectors];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) tile[r][v] = typename V::Register{};
  }
  const T* left = a.data;
  const T* right = b.data;
  for (int64_t n = 0; n < sizes.depth; ++n, left += a.step, right += b.stride) {
    typename V::Register row[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) row[v] = V::load(right + v * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const T factor = left[r * a.row];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) tile[r][v] += factor * row[v];
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      T* const out = c.data + r * c.stride + v * kLanes;
      const int64_t count = columns - v * kLanes;
      if (count >= kLanes) {
        V::store(out, sizes.accumulate ? V::load(out) + tile[r][v] : tile[r][v]);
      } else {
        T numbers[kLanes];
        V::store(numbers, tile[r][v]);
        for (int64_t i = 0; i < count; ++i) {
          out[i] = sizes.accumulate ? out[i] + numbers[i] : numbers[i];
        }
      }
    }
  }
}

/// Tiles of kRows rows from row `first` on, then smaller ones.
template <class T, int kLanes, int kRows, int kVectors>
[[gnu::always_inline]] inline void multiply_rows(const ProductSizes& sizes, LeftFactor<T> a,
                                                 RowMatrix<const T> b, RowMatrix<T> c,
                                                 int64_t columns, int64_t first) {
  for (; first + kRows <= sizes.rows; first += kRows) {
    multiply_tile<T, kLanes, kRows, kVectors>(sizes, {a.data + first * a.row, a.row, a.step}, b,
                                              {c.data + first * c.stride, c.stride}, columns);
  }
  if constexpr (kRows > 1) {
    multiply_rows<T, kLanes, (kRows > 4 ? 4 : kRows / 2), kVectors>(sizes, a, b, c, columns, first);
  }
}

/// kWidest: vectors of a tile's row. kRegisters: accumulators that leave room for a row of b and a
/// factor.
template <class T, int kLanes, int kWidest, int kRegisters>
[[gnu::always_inline]] inline void multiply(const ProductSizes& sizes, LeftFactor<T> a,
                                            RowMatrix<const T> b, RowMatrix<T> c) {
  for (int64_t first = 0; first < sizes.columns; first += kWidest * kLanes) {
    const int64_t columns = std::min<int64_t>(kWidest * kLanes, sizes.columns - first);
    const RowMatrix<const T> right = {b.data + first, b.stride};
    const RowMatrix<T> out = {c.data + first, c.stride};
    const auto with_vectors = [&]<int kVectors>() __attribute__((always_inline)) {
      if constexpr (kVectors <= kWidest) {
        multiply_rows<T, kLanes, std::min(kRegisters / kVectors, 12), kVectors>(sizes, a, right,
                                                                                out, columns, 0);
      }
    };
    switch ((columns + kLanes - 1) / kLanes) {
      case 1:
        with_vectors.template operator()<1>();
        break;
      case 2:
        with_vectors.template operator()<2>();
        break;
      case 3:
        with_vectors.template operator()<3>();
        break;
      default:
        with_vectors.template operator()<4>();
    }
  }
}

// One version per instruction set, of which the loader picks one: the tiles differ, so that
// function_clones.h will not do.
#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && !defined(__clang__)
#define FLASH_TARGET(NAME) __attribute__((target(NAME)))
#define FLASH_X86_VERSIONS(T)                   \
  FLASH_VERSION("arch=x86-64-v4", T, 64, 4, 24) \
  FLASH_VERSION("arch=x86-64-v3", T, 32, 2, 12)
#else
#define FLASH_TARGET(NAME)
#define FLASH_X86_VERSIONS(T)
#endif
#define FLASH_VERSION(NAME, T, BYTES, WIDEST, REGISTERS)                                           \
  FLASH_TARGET(NAME)                                                                               \
  void version(const ProductSizes& sizes, LeftFactor<T> a, RowMatrix<const T> b, RowMatrix<T> c) { \
    multiply<T, BYTES / static_cast<int>(sizeof(T)), WIDEST, REGISTERS>(sizes, a, b, c);           \
  }
FLASH_X86_VERSIONS(float)
FLASH_VERSION("default", float, 16, 2, 12)
FLASH_X86_VERSIONS(double)
FLASH_VERSION("default", double, 16, 2, 12)

}  // namespace

void block_product(const ProductSizes& sizes, LeftFactor<float> a, RowMatrix<const float> b,
                   RowMatrix<float> c) {
  version(sizes, a, b, c);
}

void block_product(const ProductSizes& sizes, LeftFactor<double> a, RowMatrix<const double> b,
                   RowMatrix<double> c) {
  version(sizes, a, b, c);
}

}  // namespace flash::models
