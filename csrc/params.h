#pragma once
// What a kernel is told: raw pointers, strides and sizes. Every stride is in elements, and the last
// dimension of query, key, value, output and their gradients is contiguous.

#include <cstdint>

namespace flash {

/// How numbers lie in memory: as what the kernels compute in, or as 16 bits, which a kernel of
/// float widens as it reads and rounds as it writes.
enum class Storage { kNative, kBFloat16, kHalf };

struct Strides {
  int64_t batch;
  int64_t head;
  int64_t row;
};

/// A [batch, heads, rows, columns] tensor; null where it is not wanted.
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

  double softcap;  ///< c > 0: a score s becomes c tanh(s / c); 0: it stays as it is

  const void* alibi_slopes;  ///< native: -slope |position - key| is added; null: none
  int64_t slope_strides[2];  ///< batch, head

  BiasKind bias_kind;
  Storage bias_storage;     ///< of an additive one
  const void* bias;         ///< a boolean one is of bool
  int64_t bias_strides[4];  ///< batch, head, query, key; 0 where it broadcasts

  /// A query at position p attends keys p - left … p + right; -1: unbounded. Causal is right = 0.
  int64_t window_left, window_right;
  const int64_t* positions;     ///< null: query i is at i + keys - queries
  int64_t position_strides[3];  ///< batch, head, query

  /// Native: a score that each row of a head has besides, without a value; null: none.
  const void* sinks;
  int64_t sink_strides[2];  ///< batch, head

  double dropout;
  uint64_t dropout_seed;
};

struct ForwardParams {
  Shape shape;
  ScoreParams score;
  Storage storage;  ///< of query, key and value
  ConstRows query, key, value;
  Storage out_storage;
  MutableRows out;
  void* row_max;  ///< native [batch, heads, queries]: the largest score
  void* row_sum;  ///< native [batch, heads, queries]: sum of exp(score - row_max)
  int64_t block_size;
  /// The keys are a part of all keys. A row none of whose weights is above 0 then gives 0; else it
  /// is NaN if it attends a key, since the softmax of nothing but -inf is.
  bool is_part;
};

struct BackwardParams {
  Shape shape;
  ScoreParams score;
  Storage storage;  ///< of query, key and value
  ConstRows query, key, value;
  Storage out_storage, grad_out_storage;
  ConstRows out, grad_out;
  const void* row_max;
  const void* row_sum;
  const void* grad_lse;  ///< [batch, heads, queries] contiguous, or null
  /// Likewise: what each row adds to the gradient of its slope and of its sink; null: not wanted.
  void* grad_slope_rows;
  void* grad_sink_rows;
  MutableRows grad_query, grad_key, grad_value;  ///< data may be null: not wanted
  void* grad_bias;                               ///< null where nobody asks for it
  /// True: added to what is there, as several scores share an element. False: each score has its
  /// own, which is stored; what no query attends within its window is left as it is.
  bool grad_bias_adds;
  bool grad_bias_is_double;   ///< where it is added to; else native
  Storage grad_bias_storage;  ///< where it is stored
  int64_t grad_bias_strides[4];
  int64_t block_size;
};

/// Elements that share a block of random words; the dropout kernels cut their work there.
constexpr int64_t kDropoutBlock = 64;

/// What a dropout kernel does with an element x that is kept; `scale` is 1 / (1 - dropout).
enum class DropoutKind {
  kPlain,         ///< scale x
  kAdd,           ///< other + scale x; a dropped one gives other
  kRelu,          ///< scale relu(x)
  kGelu,          ///< scale gelu(x)
  kReluGradient,  ///< scale relu'(x) other
  kGeluGradient,  ///< scale gelu'(x) other
};

/// Contiguous arrays of `elements` numbers, elements first, first + 1, … of a whole. Whether an
/// element is kept depends on the seed and its number in the whole only.
struct DropoutParams {
  DropoutKind kind;
  const void* input;
  const void* other;  ///< the residual or the gradient; null where the kind has none
  void* out;          ///< may be `input` or `other`
  void* value;        ///< with a gradient: what kRelu or kGelu gives of `input`; null: not wanted
  int64_t first;      ///< counts elements before these, whole blocks of kDropoutBlock
  int64_t elements;
  double dropout;
  uint64_t seed;
};

/// out[r][c] (+)= sum over n of left[r][n] * right[n][c].
struct ProductParams {
  const void* left;  ///< [rows, depth], any strides
  int64_t left_row, left_step;
  const void* right;  ///< [depth, columns], rows or columns contiguous
  int64_t right_row, right_column;
  void* out;  ///< [rows, columns], rows contiguous
  int64_t out_row;
  int64_t rows, depth, columns;
  bool add;  ///< to what is in `out`; else replace it
};

/// max over j of s_ij - (sum over j of s_ij) / keys, with s_ij = query_i . key_index(i, j).
struct SparsityParams {
  ConstRows query;
  ConstRows key;
  const int64_t* index;  ///< [queries, samples] contiguous, in [0, keys)
  void* out;             ///< [batch, heads, queries] contiguous
  int64_t batch, heads, queries, keys, head_dim, samples;
};

/// A [batch, times, channels] tensor; channels are contiguous.
template <class Pointer>
struct SeriesOf {
  Pointer data;
  int64_t batch_stride;
  int64_t time_stride;
};
using ConstSeries = SeriesOf<const void*>;
using MutableSeries = SeriesOf<void*>;

/// [batch, delays], each in [0, times); batch_stride is 0 where the batch shares them.
struct Delays {
  const int64_t* data;
  int64_t batch_stride;
};

/// out[b, t, c] = sum over i of weights[b, i] * value[b, (t + delay[b, i]) mod times, c].
struct AggregationParams {
  int64_t batch, times, channels, delays;
  Delays delay;
  ConstSeries value;
  const void* weights;  ///< [batch, delays] contiguous
  MutableSeries out;
};

/// out[b, i] = scale * sum over t, c of query[b, (t + delay[b, i]) mod times, c] * key[b, t, c].
struct CorrelationParams {
  int64_t batch, times, channels, delays;
  Delays delay;
  ConstSeries query;
  ConstSeries key;
  double scale;
  void* out;  ///< [batch, delays] contiguous
};

}  // namespace flash
