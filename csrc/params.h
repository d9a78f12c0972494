#pragma once
// What a kernel is told: raw pointers, strides and sizes. Every stride is in elements, and the last
// dimension of query, key, value, output and their gradients is contiguous.

#include <cstdint>

namespace flash {

struct Strides {
  int64_t batch;
  int64_t head;
  int64_t row;
};

/// A [batch, heads, rows, columns] tensor of the problem's dtype; null where it is not wanted.
template <class Pointer>
struct RowsOf {
  Pointer data;
  Strides strides;
};
using ConstRows = RowsOf<const void*>;
using MutableRows = RowsOf<void*>;

struct Shape {
  int64_t batch;
  int64_t heads;  ///< query heads, a multiple of the two below
  int64_t key_heads;
  int64_t value_heads;
  int64_t queries;
  int64_t keys;
  int64_t head_dim;   ///< width of query and key
  int64_t value_dim;  ///< width of value and output
};

enum class BiasKind { kNone, kAdditive, kBoolean };

/// What happens to a score between `scale * q k^T` and the softmax, and to a weight after it.
/// A new score option gets its fields here and its arithmetic in generic/score_stage.h.
struct ScoreParams {
  double scale;

  BiasKind bias_kind;
  const void* bias;         ///< the problem's dtype, or bool
  int64_t bias_strides[4];  ///< batch, head, query, key; 0 where it broadcasts

  bool causal;
  const int64_t* positions;     ///< null: query i is at i + keys - queries
  int64_t position_strides[3];  ///< batch, head, query

  double dropout;
  uint64_t dropout_seed;
};

struct ForwardParams {
  Shape shape;
  ScoreParams score;
  ConstRows query, key, value;
  MutableRows out;
  void* row_max;  ///< [batch, heads, queries]: the largest score
  void* row_sum;  ///< [batch, heads, queries]: sum of exp(score - row_max)
  int64_t block_size;
};

struct BackwardParams {
  Shape shape;
  ScoreParams score;
  ConstRows query, key, value, out, grad_out;
  const void* row_max;
  const void* row_sum;
  const void* grad_lse;                          ///< [batch, heads, queries] contiguous, or null
  MutableRows grad_query, grad_key, grad_value;  ///< data may be null: not wanted
  void* grad_bias;                               ///< zero-filled, or null
  bool grad_bias_is_double;                      ///< else of the problem's dtype
  int64_t grad_bias_strides[4];
  int64_t block_size;
};

}  // namespace flash
