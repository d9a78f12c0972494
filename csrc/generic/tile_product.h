#pragma once
// Products of matrices of bfloat16, or of float in bfloat16 parts, on tile registers
// (csrc/amx/tiles.h) or on vectors (csrc/avx512_bf16/tiles.h), accumulated in float, and the
// operands in the order in which tiles are loaded.
//
// As everywhere in generic/, lanes are queries. The right operand of each product has a column per
// query, so the scores and the output are formed transposed:
//
//   product     sum                 left operand         right operand
//   scores      S^T[key][query]     K[key][d]            Q^T[d][query]
//   output      O^T[d][query]       V^T[d][key]          P^T[key][query]
//
// TDPBF16PS reads a right operand in pairs of rows: word [n][query] holds elements 2 n and 2 n + 1
// of a column. Weights become such words by one shift and one merge of two registers of lanes. Left
// operands are packed once per block of keys and used for every tile of queries in a group.

#include <cstdint>

#include "csrc/generic/exp.h"
#include "csrc/generic/product.h"
#include "csrc/storage.h"

namespace flash {
namespace {

constexpr int64_t kTileRows = 16;   // rows of a left operand and of a sum, columns of a right one
constexpr int64_t kTileDepth = 32;  // terms of one multiply-add
constexpr int64_t kTileWords = 16;  // the same in pairs of bfloat16
constexpr int64_t kTileBytes = 1024;

using Word = uint32_t;  // two bfloat16, the first in the lower half

/// Queries of a tile: two columns of tile registers.
constexpr int64_t kTileLanes = 2 * kTileRows;

/// The same in vectors.
template <class V>
struct TileVec : V {
  static constexpr int kScoreVecs = kTileLanes / V::kWidth;
  static constexpr int score_rows(int) { return 1; }
};

/// Hands out 64-byte aligned parts of the scratch memory.
class Arena {
 public:
  explicit Arena(void* memory) : begin_(static_cast<char*>(memory)), end_(begin_) {}
  template <class T>
  T* take(int64_t elements) {
    T* part = reinterpret_cast<T*>(end_);
    end_ += round_up(elements * static_cast<int64_t>(sizeof(T)), 64);
    return part;
  }
  int64_t bytes() const { return end_ - begin_; }

 private:
  char* begin_;
  char* end_;
};

inline int64_t depth_steps(int64_t depth) { return ceil_div(depth, kTileDepth); }

/// A left operand: tiles of sixteen rows by kTileDepth, `row` bytes from one to the rows below,
/// `step` bytes to the next terms, and `part` bytes to the next part of float elements.
struct LeftTiles {
  const char* data;
  int64_t row, step, part;
};

/// A right operand: words [steps * kTileWords][lanes], `part` words from one part to the next.
struct RightWords {
  const Word* data;
  int64_t part;
};

/// The parts of the left and the right operand that are multiplied, for elements in kParts parts
/// (tile_parts.h): all but those whose product is smaller than what the parts do not hold. Each
/// shares a part with the one before, so that one operand stays in its registers, and the largest
/// comes last where that allows it.
struct PartPair {
  int left, right;
};
template <int kParts>
struct PartPairs;
template <>
struct PartPairs<1> {
  static constexpr int kCount = 1;
  static constexpr PartPair kList[kCount] = {{0, 0}};
};
template <>
struct PartPairs<2> {
  static constexpr int kCount = 3;
  static constexpr PartPair kList[kCount] = {{0, 1}, {0, 0}, {1, 0}};
};
template <>
struct PartPairs<3> {
  static constexpr int kCount = 6;
  static constexpr PartPair kList[kCount] = {{0, 2}, {0, 1}, {1, 1}, {1, 0}, {2, 0}, {0, 0}};
};

template <class M, int kParts, int kRowTiles, int kHalves>
[[gnu::always_inline]] inline void tile_rows(LeftTiles left, RightWords right, int64_t steps,
                                             float* sum, int64_t stride, bool accumulate) {
  using Pairs = PartPairs<kParts>;
  constexpr int64_t kStride = kHalves * 64;
  const int64_t bytes = stride * static_cast<int64_t>(sizeof(float));
  const auto block = [&](int r, int h) { return sum + r * kTileRows * stride + h * kTileRows; };
  if (accumulate) {
    M::template load<0>(block(0, 0), bytes);
    if constexpr (kHalves == 2) M::template load<1>(block(0, 1), bytes);
    if constexpr (kRowTiles == 2) M::template load<2>(block(1, 0), bytes);
    if constexpr (kRowTiles == 2 && kHalves == 2) M::template load<3>(block(1, 1), bytes);
  } else {
    M::template zero<0>();
    if constexpr (kHalves == 2) M::template zero<1>();
    if constexpr (kRowTiles == 2) M::template zero<2>();
    if constexpr (kRowTiles == 2 && kHalves == 2) M::template zero<3>();
  }
  const char* rows = left.data;
  const Word* columns = right.data;
  for (int64_t n = 0; n < steps; ++n) {
    each<Pairs::kCount>([&](int i) __attribute__((always_inline)) {
      const PartPair parts = Pairs::kList[i];
      const bool loads_left = i == 0 || parts.left != Pairs::kList[i - 1].left;
      const bool loads_right = i == 0 || parts.right != Pairs::kList[i - 1].right;
      const char* from = rows + parts.left * left.part;
      const Word* words = columns + parts.right * right.part;
      if (loads_left) M::template load<4>(from, 64);
      if (loads_right) M::template load<6>(words, kStride);
      M::template multiply_add<0, 4, 6>();
      if constexpr (kHalves == 2) {
        if (loads_right) M::template load<7>(words + kTileRows, kStride);
        M::template multiply_add<1, 4, 7>();
      }
      if constexpr (kRowTiles == 2) {
        if (loads_left) M::template load<5>(from + left.row, 64);
        M::template multiply_add<2, 5, 6>();
        if constexpr (kHalves == 2) M::template multiply_add<3, 5, 7>();
      }
    });
    rows += left.step;
    columns += kTileWords * kHalves * kTileRows;
  }
  M::template store<0>(block(0, 0), bytes);
  if constexpr (kHalves == 2) M::template store<1>(block(0, 1), bytes);
  if constexpr (kRowTiles == 2) M::template store<2>(block(1, 0), bytes);
  if constexpr (kRowTiles == 2 && kHalves == 2) M::template store<3>(block(1, 1), bytes);
}

/// sum[rows][lanes] (+)= left right over `steps` * kTileDepth terms of kParts parts, for kHalves *
/// kTileRows lanes. Rows of `sum` are `stride` elements apart; `rows` is a multiple of kTileRows.
template <class M, int kParts, int kHalves>
[[gnu::noinline]] void tile_product(LeftTiles left, RightWords right, int64_t rows, int64_t steps,
                                    float* sum, int64_t stride, bool accumulate) {
  if constexpr (requires { &M::template product<kHalves>; }) {
    using Pairs = PartPairs<kParts>;
    for (int i = 0; i < Pairs::kCount; ++i) {
      LeftTiles from = left;
      from.data += Pairs::kList[i].left * left.part;
      M::template product<kHalves>(from, right.data + Pairs::kList[i].right * right.part, rows,
                                   steps, sum, stride, accumulate || i > 0);
    }
  } else {
    int64_t r = 0;
    for (; r + 2 * kTileRows <= rows; r += 2 * kTileRows) {
      tile_rows<M, kParts, 2, kHalves>(left, right, steps, sum + r * stride, stride, accumulate);
      left.data += 2 * left.row;
    }
    if (r == rows) return;
    tile_rows<M, kParts, 1, kHalves>(left, right, steps, sum + r * stride, stride, accumulate);
  }
}

}  // namespace
}  // namespace flash
