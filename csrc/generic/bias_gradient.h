#pragma once
// The gradient of a bias: dS of a block is stored, or summed over the dimensions that the bias
// broadcasts over.

#include <cstdint>
#include <type_traits>

#include "csrc/generic/product.h"
#include "csrc/generic/stored_rows.h"
#include "csrc/params.h"

namespace flash {
namespace {

/// The bias gradient of one (batch, head).
template <class V>
class BiasGradient {
 public:
  using T = typename V::Scalar;
  using Reg = typename V::Reg;

  BiasGradient(const BackwardParams& p, int64_t batch, int64_t head)
      : p_(p), batch_(batch), head_(head) {}

  /// Adds or stores grad_scores[key][query], rows `stride` apart, of keys [key, key + keys) and
  /// queries [query, query + queries).
  void add(int64_t query, int64_t queries, int64_t key, int64_t keys, const T* grad_scores,
           int64_t stride) const {
    if (!p_.grad_bias_adds) {
      store(query, queries, key, keys, grad_scores, stride);
    } else if (p_.grad_bias_is_double) {
      add_as<double>(query, queries, key, keys, grad_scores, stride);
    } else {
      add_as<T>(query, queries, key, keys, grad_scores, stride);
    }
  }

 private:
  int64_t offset_of(int64_t query, int64_t key) const {
    const int64_t* to = p_.grad_bias_strides;
    return batch_ * to[0] + head_ * to[1] + query * to[2] + key * to[3];
  }

  // Sums over a broadcast dimension before adding to memory.
  template <class Sum>
  void add_as(int64_t query, int64_t queries, int64_t key, int64_t keys, const T* grad_scores,
              int64_t stride) const {
    const int64_t* to = p_.grad_bias_strides;
    Sum* grad = static_cast<Sum*>(p_.grad_bias) + offset_of(query, key);
    if (to[2] == 0) {
      for (int64_t j = 0; j < keys; ++j) {
        Sum sum = 0;
        for (int64_t i = 0; i < queries; ++i) sum += grad_scores[j * stride + i];
        grad[j * to[3]] += sum;
      }
    } else if (to[3] == 0) {
      for (int64_t i = 0; i < queries; ++i) {
        Sum sum = 0;
        for (int64_t j = 0; j < keys; ++j) sum += grad_scores[j * stride + i];
        grad[i * to[2]] += sum;
      }
    } else {
      for (int64_t i = 0; i < queries; ++i) {
        Sum* row = grad + i * to[2];
        for (int64_t j = 0; j < keys; ++j) {
          row[j * to[3]] += grad_scores[j * stride + i];
        }
      }
    }
  }

  void store(int64_t query, int64_t queries, int64_t key, int64_t keys, const T* grad_scores,
             int64_t stride) const {
    with_stored<T>(p_.grad_bias, p_.grad_bias_storage, [&](auto* first) {
      store_as(first + offset_of(query, key), queries, keys, grad_scores, stride);
    });
  }

  // Transposes dS in registers if rows of the bias are contiguous.
  template <class Stored>
  void store_as(Stored* grad, int64_t queries, int64_t keys, const T* grad_scores,
                int64_t stride) const {
    constexpr int W = V::kWidth;
    const int64_t* to = p_.grad_bias_strides;
    int64_t i = 0;
    for (; to[3] == 1 && i + W <= queries; i += W) {
      for (int64_t j = 0; j < keys; j += W) {
        const int64_t width = min_of(W, keys - j);
        Reg block[W];
#pragma GCC unroll 16
        for (int r = 0; r < W; ++r) {
          block[r] = r < width ? V::load(grad_scores + (j + r) * stride + i) : V::zero();
        }
        V::transpose(block);
#pragma GCC unroll 16
        for (int r = 0; r < W; ++r) {
          Stored* row = grad + (i + r) * to[2] + j;
          if (width == W) {  // a masked store is microcode on some CPUs
            V::store(row, block[r]);
          } else {
            store_first<V>(row, block[r], width);
          }
        }
      }
    }
    for (; i < queries; ++i) {
      Stored* row = grad + i * to[2];
      for (int64_t j = 0; j < keys; ++j) put(grad_scores[j * stride + i], row + j * to[3]);
    }
  }

  static void put(T x, T* to) { *to = x; }
  template <class Stored>
  static void put(T x, Stored* to) {
    round_to(x, to);
  }

  const BackwardParams& p_;
  const int64_t batch_, head_;
};

}  // namespace
}  // namespace flash
