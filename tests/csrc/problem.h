#pragma once
// A small attention problem: sizes, options and random inputs.

#include <cmath>
#include <cstdint>
#include <random>
#include <sstream>
#include <string>
#include <type_traits>
#include <vector>

#include "csrc/generic/stored_rows.h"
#include "csrc/params.h"

namespace flash::testing {

/// The memory layout of [batch, heads, length, width] tensors: contiguous; as [batch, length,
/// heads, width], the layout after a projection; or with gaps between rows.
enum class Layout { kContiguous, kHeadsAfterLength, kGaps };

/// The positions of queries: none given (they align with the last keys); random, some before all
/// keys; or all before all keys.
enum class Positions { kNone, kRandom, kBeforeEveryKey };

struct Options {
  bool causal = false;
  double dropout = 0;
  BiasKind bias = BiasKind::kNone;
  int64_t block_size = 64;
  int64_t left = -1, right = -1;  ///< the window; causal sets right to 0
  double softcap = 0;
  bool slopes = false;
  double sinks = 0;  ///< standard deviation of the sinks; 0: none
  Positions positions = Positions::kNone;
  bool bias_per_key = false;  ///< one bias row for all batch elements, heads and queries
  bool grad_lse = false;
  Storage storage = Storage::kNative;  ///< of query, key, value, bias and grad_out
  bool out_16_bit = false;             ///< whether out has type `storage`, too
  Layout layout = Layout::kContiguous;
  FloatParts float_parts = 0;
};

/// Describes a problem in failure messages.
inline std::string describe(const Shape& s, const Options& o) {
  std::ostringstream text;
  text << "batch " << s.batch << " heads " << s.heads << " " << s.key_heads << " " << s.value_heads
       << " queries " << s.queries << " keys " << s.keys << " head_dim " << s.head_dim
       << " value_dim " << s.value_dim << " causal " << o.causal << " dropout " << o.dropout
       << " bias " << static_cast<int>(o.bias) << (o.bias_per_key ? " per key" : "") << " block "
       << o.block_size << " window " << o.left << " " << o.right << " softcap " << o.softcap
       << " slopes " << o.slopes << " sinks " << o.sinks << " positions "
       << static_cast<int>(o.positions) << " grad_lse " << o.grad_lse << " storage "
       << static_cast<int>(o.storage) << (o.out_16_bit ? " and out" : "") << " layout "
       << static_cast<int>(o.layout) << " float_parts " << o.float_parts;
  return text.str();
}

/// Rounds x to `storage`.
template <class T>
T rounded(T x, Storage storage) {
  if constexpr (std::is_same_v<T, float>) {
    if (storage != Storage::kNative) {
      uint16_t bits[1];
      with_16_bit(static_cast<void*>(bits), storage, [&](auto* p) {
        round_to(x, p);
        x = to_float(*p);
      });
    }
  }
  return x;
}

/// The inputs of one problem: contiguous, from a standard normal distribution.
template <class T>
struct Problem {
  Shape shape;
  Options options;
  double scale;
  std::vector<T> q, k, v, grad_out;
  std::vector<T> grad_lse;         ///< [batch, heads, queries], or empty
  std::vector<T> bias;             ///< additive: [batch, heads, queries, keys], [keys] or empty
  std::vector<uint8_t> mask;       ///< boolean; shaped as bias
  std::vector<T> slopes, sinks;    ///< [batch, heads] and [heads], or empty
  std::vector<int64_t> positions;  ///< [batch, heads, queries], or empty

  Problem(Shape s, Options o, uint64_t seed = 1)
      : shape(s), options(o), scale(1 / std::sqrt(static_cast<double>(s.head_dim))) {
    std::mt19937_64 random(seed);
    std::normal_distribution<double> normal;
    const auto fill = [&](std::vector<T>& x, int64_t size, Storage storage) {
      x.resize(size);
      for (T& value : x) value = rounded(static_cast<T>(normal(random)), storage);
    };
    const int64_t rows = s.batch * s.heads * s.queries;
    fill(q, rows * s.head_dim, o.storage);
    fill(k, s.batch * s.key_heads * s.keys * s.head_dim, o.storage);
    fill(v, s.batch * s.value_heads * s.keys * s.value_dim, o.storage);
    fill(grad_out, rows * s.value_dim, o.storage);
    const int64_t biases = o.bias_per_key ? s.keys : rows * s.keys;
    if (o.bias == BiasKind::kAdditive) fill(bias, biases, o.storage);
    if (o.bias == BiasKind::kBoolean) {
      mask.resize(biases);
      for (uint8_t& attends : mask) attends = random() % 4 > 0;
    }
    if (o.slopes) fill(slopes, s.batch * s.heads, Storage::kNative);
    for (T& slope : slopes) slope = std::abs(slope) / 4;
    if (o.sinks > 0) fill(sinks, s.heads, Storage::kNative);
    for (T& sink : sinks) sink *= static_cast<T>(o.sinks);
    if (o.grad_lse) fill(grad_lse, rows, Storage::kNative);
    if (o.positions != Positions::kNone) {
      const uint64_t choices = o.positions == Positions::kRandom ? s.keys + 2 : 1;
      positions.resize(rows);
      for (int64_t& p : positions) p = static_cast<int64_t>(random() % choices) - 1;
    }
  }

  /// The position of query i; `row` is its index among all rows.
  int64_t position(int64_t row, int64_t i) const {
    return positions.empty() ? i + shape.keys - shape.queries : positions[row];
  }
  int64_t bias_index(int64_t row, int64_t key) const {
    return options.bias_per_key ? key : row * shape.keys + key;
  }
};

/// The outputs and gradients of one problem, in the layout of the inputs of a Problem.
struct Answer {
  std::vector<double> out, lse, dq, dk, dv, dbias;
  std::vector<double> dslopes, dsinks;  ///< the contribution of each row to the gradient
};

/// Whether the kernel adds to the bias gradient or stores it. Both give the same result; this
/// varies the choice over the options.
inline bool adds_to_grad_bias(const Options& o) { return o.bias_per_key || o.causal; }

inline constexpr uint64_t kSeed = 0x123456789abcdefull;

}  // namespace flash::testing
