// The product of two matrices of float on matrix tiles, in two parts: on those of this CPU, if it
// has any, and on emulated ones. Those take 50 us for 16 x 16 x 32 products, so matrices are small.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "tests/csrc/isa.h"
#include "tests/csrc/memory.h"

namespace flash {
namespace {

using testing::Memory;
using testing::normal;
using testing::Place;

constexpr int64_t kGap = 3;  // elements between two rows, or columns, of right and result

struct Problem {
  int64_t rows, depth, columns;
  bool left_transposed, right_transposed, add;

  std::string text() const {
    return std::to_string(rows) + " x " + std::to_string(depth) + " x " + std::to_string(columns) +
           (left_transposed ? ", left transposed" : "") +
           (right_transposed ? ", right transposed" : "") + (add ? ", added" : "");
  }
  int64_t left_row() const { return left_transposed ? 1 : depth; }
  int64_t left_step() const { return left_transposed ? rows : 1; }
  int64_t right_row() const { return right_transposed ? 1 : columns + kGap; }
  int64_t right_column() const { return right_transposed ? depth + kGap : 1; }
  int64_t out_row() const { return columns + kGap; }
  int64_t right_size() const {
    return (depth - 1) * right_row() + (columns - 1) * right_column() + 1;
  }
};

struct Inputs {
  std::vector<float> left, right, before;

  explicit Inputs(const Problem& s)
      : left(normal<float>(s.rows * s.depth, 1)),
        right(normal<float>(s.right_size(), 2)),
        before(normal<float>((s.rows - 1) * s.out_row() + s.columns, 3)) {}
};

/// The result on `units` units of work at a time.
std::vector<float> product(const KernelTable& table, const Problem& s, const Inputs& inputs,
                           int parts, Place place, int64_t units) {
  Memory memory(place);
  ProductParams p = {};
  p.left = memory.copy("left", inputs.left), p.right = memory.copy("right", inputs.right);
  float* const out = memory.copy("out", inputs.before);
  p.out = out;
  p.left_row = s.left_row(), p.left_step = s.left_step();
  p.right_row = s.right_row(), p.right_column = s.right_column();
  p.out_row = s.out_row();
  p.rows = s.rows, p.depth = s.depth, p.columns = s.columns;
  p.add = s.add, p.float_parts = parts;
  const int64_t all = table.f32.product_plan(p).units;
  for (int64_t unit = 0; unit < all; unit += units) {
    table.f32.product(p, unit, std::min(unit + units, all));
  }
  return {out, out + inputs.before.size()};
}

constexpr int64_t kAll = std::numeric_limits<int64_t>::max() / 2;

class TileMatrixProduct : public ::testing::TestWithParam<const KernelTable*> {
 protected:
  const KernelTable& table() const { return *GetParam(); }
};

TEST_P(TileMatrixProduct, MatchesReference) {
  const int64_t sizes[][3] = {
      {16, 32, 16}, {33, 70, 40}, {48, 33, 32}, {17, 290, 65}, {270, 32, 17}};
  for (const auto& [rows, depth, columns] : sizes) {
    for (int options = 0; options < 8; ++options) {
      const Problem s = {
          rows, depth, columns, (options & 1) != 0, (options & 2) != 0, (options & 4) != 0};
      SCOPED_TRACE(s.text());
      testing::describe_guarded_call(s.text().c_str());
      const Inputs inputs(s);
      for (const Place place : {Place::kAfterGuard, Place::kBeforeGuard}) {
        const std::vector<float> out = product(table(), s, inputs, 2, place, kAll);
        for (int64_t i = 0; i < static_cast<int64_t>(out.size()); ++i) {
          const int64_t r = i / s.out_row(), c = i % s.out_row();
          if (c >= columns) {
            ASSERT_EQ(out[i], inputs.before[i]) << "between rows, at " << i;
            continue;
          }
          double sum = s.add ? inputs.before[i] : 0, size = std::abs(sum);
          for (int64_t n = 0; n < depth; ++n) {
            const double term =
                static_cast<double>(inputs.left[r * s.left_row() + n * s.left_step()]) *
                inputs.right[n * s.right_row() + c * s.right_column()];
            sum += term, size += std::abs(term);
          }
          // Two parts leave up to 2^-17 of each factor, and their products leave out one of 2^-16;
          // what float rounds in sums of up to 290 terms is less.
          ASSERT_NEAR(out[i], sum, 0x1p-14 * size) << "at " << i;
        }
      }
    }
  }
}

TEST_P(TileMatrixProduct, WithoutPartsHasTheBitsOfTheVectors) {
  const Problem s = {33, 70, 40, false, false, true};
  const Inputs inputs(s);
  for (const KernelTable* vectors : testing::supported_kernels()) {
    // The table whose vectors this one has.
    if (vectors->f32.dropout != table().f32.dropout) continue;
    EXPECT_EQ(product(table(), s, inputs, 0, Place::kHeap, kAll),
              product(*vectors, s, inputs, 0, Place::kHeap, kAll));
  }
}

TEST_P(TileMatrixProduct, LeavesWhatPartsDoNotHoldToTheVectors) {
  const Problem s = {70, 40, 70, false, false, true};
  const Inputs finite(s);
  const std::vector<float> on_tiles = product(table(), s, finite, 2, Place::kHeap, kAll);
  for (const float value : {std::numeric_limits<float>::infinity(), 1e30f, 1e-30f}) {
    for (const bool in_left : {false, true}) {
      Inputs inputs = finite;
      // Row 33 is in the second unit of rows, column 33 in the second group of columns.
      (in_left ? inputs.left[33 * s.left_row() + 5] : inputs.right[5 * s.right_row() + 33]) = value;
      const std::vector<float> found = product(table(), s, inputs, 2, Place::kHeap, kAll);
      const std::vector<float> expected = product(table(), s, inputs, 0, Place::kHeap, kAll);
      for (size_t i = 0; i < found.size(); ++i) {
        const auto at = static_cast<int64_t>(i);
        const int64_t index = in_left ? at / s.out_row() : at % s.out_row();
        const bool is_left_out = index >= 32 && index < 64;
        const float wanted = is_left_out ? expected[i] : on_tiles[i];
        ASSERT_EQ(found[i], wanted) << value << (in_left ? " in left" : " in right") << " at " << i;
      }
    }
  }
}

TEST_P(TileMatrixProduct, BitsDoNotDependOnTheUnitsOfACall) {
  Problem s = {140, 300, 40, false, true, true};
  Inputs inputs(s);
  inputs.left[70 * s.left_row()] = 1e30f;
  const std::vector<float> together = product(table(), s, inputs, 2, Place::kHeap, kAll);
  for (const int64_t units : {1, 2}) {
    EXPECT_EQ(product(table(), s, inputs, 2, Place::kHeap, units), together) << units;
  }
}

INSTANTIATE_TEST_SUITE_P(Isa, TileMatrixProduct,
                         ::testing::ValuesIn(testing::supported_kernels(/*tiles=*/true)),
                         [](const auto& call) {
                           std::string name = call.param->name;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

}  // namespace
}  // namespace flash
