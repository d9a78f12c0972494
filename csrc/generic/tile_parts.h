#pragma once
// Operands of tile_product.h from rows of bfloat16, or of float as sums of bfloat16 parts.
//
// Each part of x is what the parts before it leave, rounded to bfloat16. Three of them hold x:
// three times eight bits. Two leave at most 2^-17 of it. Products of parts are exact in float, and
// those that are left out are of the order of what the parts leave (PartPairs).
//
// Tiles flush denormals, which takes low parts from small numbers, and Inf - Inf is NaN. So rows
// take part only if `rows_fit_parts` says so; a block whose rows do not is computed in float.

#include <cstdint>
#include <type_traits>

#include "csrc/generic/lanes.h"
#include "csrc/generic/tile_packing.h"
#include "csrc/params.h"
#include "csrc/philox.h"

namespace flash {
namespace {

/// The elements of tensors that are computed in kParts parts.
template <int kParts>
using Element = std::conditional_t<kParts == 1, BFloat16, float>;

/// The parts of the elements of a call: 1 if they are bfloat16, and 0 if tiles do not compute it.
template <class Params>
int parts_of(const Params& p) {
  return p.storage == Storage::kBFloat16 ? 1 : p.float_parts;
}

/// Calls f.operator()<kParts>(), kParts = parts_of(p).
template <class Params, class F>
void with_parts_of(const Params& p, F&& f) {
  switch (parts_of(p)) {
    case 1:
      return f.template operator()<1>();
    case 2:
      return f.template operator()<2>();
    default:
      return f.template operator()<3>();
  }
}

/// The products of parts that tiles form for one product of elements.
template <class Params>
int pairs_of(const Params& p) {
  const int parts = parts_of(p);
  return parts * (parts + 1) / 2;
}

// With these bounds, a sum of up to 2^16 products of two operands, times the scale, times a third
// operand is below 2^127, so nothing overflows that would not in float. What tiles flush is below
// 2^-80 of the largest element of an operand, and below 2^-24 of any element times a weight that
// counts.
constexpr float kLargestPart = 0x1p30f, kLeastLargest = 0x1p-40f, kSmallestPart = 0x1p-75f;
constexpr float kLargestDelta = 0x1p76f;
constexpr double kLargestScale = 0x1p12, kSmallestScale = 0x1p-20;

/// Whether the options of a call leave its products in the range of the bounds above.
inline bool scores_fit_parts(const ScoreParams& p) {
  const double size = p.scale < 0 ? -p.scale : p.scale;
  const double keep = dropout_keep_scale(p.dropout);
  return size >= kSmallestScale && size * (keep > 1 ? keep : 1) <= kLargestScale;
}

/// Whether tiles may compute with the parts of these rows: NaN and Inf are not among them, nor
/// numbers that are too large, nor small ones other than 0.
template <class V>
[[gnu::noinline]] bool rows_fit_parts(RowView<float> rows, int64_t count, int64_t columns) {
  using Reg = typename V::Reg;
  Reg most = V::zero(), unfit = V::zero();
  const Reg one = V::broadcast(1), largest = V::broadcast(kLargestPart),
            smallest = V::broadcast(kSmallestPart);
  for (int64_t i = 0; i < count; ++i) {
    for_lanes<V>(
        columns, [&](int64_t c, auto lanes) __attribute__((always_inline)) {
          const Reg size = V::abs(lanes.load(rows.at(i) + c));
          most = V::max(size, most);
          unfit = V::if_less(size, largest, unfit, one);
          unfit = V::if_less(size, smallest, V::add(unfit, size), unfit);
        });
  }
  return is_zero<V>(unfit) && (is_zero<V>(most) || V::any_less(V::broadcast(kLeastLargest), most));
}

/// Whether tiles may compute with score gradients that have these differences.
template <class V>
bool deltas_fit_parts(const float* delta, int64_t count) {
  typename V::Reg unfit = V::zero();
  for (int64_t i = 0; i < count; i += V::kWidth) {
    unfit =
        V::if_less(V::abs(V::load(delta + i)), V::broadcast(kLargestDelta), unfit, V::broadcast(1));
  }
  return is_zero<V>(unfit);
}

/// Calls pack(part, first, rows, count) for each part of the rows first … first + count - 1, as
/// rows of bfloat16. Those of float are multiplied by `factor`, and the parts of up to kTileDepth
/// at a time lie in `stage`, which holds kParts * kTileDepth rows of whole steps.
template <class V, int kParts, class Pack>
void for_parts(RowView<Element<kParts>> rows, int64_t count, int64_t columns, float factor,
               BFloat16* stage, Pack&& pack) {
  if constexpr (kParts == 1) {
    pack(0, int64_t{0}, rows, count);
  } else {
    const int64_t width = round_up(columns, kTileDepth), part = kTileDepth * width;
    const typename V::Reg scale = V::broadcast(factor);
    for (int64_t first = 0; first < count; first += kTileDepth) {
      const int64_t height = min_of(kTileDepth, count - first);
      for (int64_t i = 0; i < height; ++i) {
        BFloat16* to = stage + i * width;
        for_lanes<V>(
            columns, [&](int64_t c, auto lanes) __attribute__((always_inline)) {
              typename V::Reg x = V::mul(lanes.load(rows.at(first + i) + c), scale);
              each<kParts>([&](int p) __attribute__((always_inline)) {
                V::store(to + p * part + c, x);
                x = V::sub(x, V::load(to + p * part + c));
              });
            });
      }
      for (int p = 0; p < kParts; ++p) {
        pack(p, first, RowView<BFloat16>{stage + p * part, width}, height);
      }
    }
  }
}

/// `pack_rows` of each part; parts are `part` bytes apart.
template <class V, int kParts>
void pack_row_parts(RowView<Element<kParts>> rows, int64_t count, int64_t depth, BFloat16* stage,
                    char* to, int64_t part) {
  const int64_t row_bytes = depth_steps(depth) * kTileBytes / kTileRows;
  for_parts<V, kParts>(rows, count, depth, 1, stage,
                       [&](int p, int64_t first, RowView<BFloat16> from, int64_t height) {
                         pack_rows(from, height, depth, to + p * part + first * row_bytes);
                       });
}

/// `pack_transposed_rows` of each part; parts are `part` bytes apart.
template <class V, int kParts>
void pack_transposed_parts(RowView<Element<kParts>> rows, int64_t count, int64_t columns,
                           BFloat16* stage, char* to, int64_t part) {
  const int64_t step = ceil_div(columns, kTileRows) * kTileBytes;
  for_parts<V, kParts>(rows, count, columns, 1, stage,
                       [&](int p, int64_t first, RowView<BFloat16> from, int64_t height) {
                         pack_transposed_rows<V>(from, height, columns,
                                                 to + p * part + first / kTileDepth * step);
                       });
}

/// Stores the words of two registers of float; parts are `part` words apart.
template <class V, int kParts>
[[gnu::always_inline]] inline void store_pair(Word* to, int64_t part, typename V::Reg even,
                                              typename V::Reg odd) {
  each<kParts>([&](int p) __attribute__((always_inline)) {
    V::store_words(to + p * part, V::pair(even, odd));
    if (p + 1 == kParts) return;
    even = V::sub(even, V::to_bfloat16(even));
    odd = V::sub(odd, V::to_bfloat16(odd));
  });
}

}  // namespace
}  // namespace flash
