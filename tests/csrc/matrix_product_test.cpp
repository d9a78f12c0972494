// Compares the matrix product of every instruction set with a reference in double. Every operand is
// between two guard pages.

#include <gtest/gtest.h>

#include <algorithm>
#include <iterator>
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
using testing::supported_kernels;
using testing::typed;

struct Sizes {
  int64_t rows, depth, columns;
  int64_t right_gap = 3;  ///< elements between two rows, or columns, of the right matrix
  int64_t left_gap = 0;   ///< elements between two columns of a left matrix that is transposed
};
const Sizes kNamedSizes[] = {
    {1, 1, 1},
    {7, 5, 3},
    {33, 128, 64},
    {32, 129, 65},
    {70, 300, 17},
    {40, 64, 130},
    {64, 257, 96},
    {3, 0, 5},
    {0, 3, 5},
    {3, 5, 0},
    {300, 260, 600},
    // Few columns. A single one is read in place even if the right matrix is transposed.
    {5, 9, 1},
    {5, 9, 2},
    {70, 260, 2},
    {33, 64, 4},
    // Panels of 2, 8, 16, 32 and 64 columns, which are copied if rows are far apart: one panel, one
    // column more or less, and two panels.
    {48, 256, 2, 600},
    {47, 31, 8, 600},
    {48, 257, 8, 600},
    {49, 255, 16, 600},
    {50, 33, 15, 600},
    {48, 7, 17, 600},
    {48, 256, 32, 600},
    {64, 100, 31, 600},
    {48, 256, 64, 600},
    {48, 9, 63, 600},
    {48, 9, 65, 600},
    {48, 1, 128, 600},
    // The same with rows a multiple of 256 bytes apart, from 64 rows of a panel on.
    {48, 64, 16, 48},
    {48, 63, 16, 48},
    {50, 257, 32, 32},
    {47, 65, 64, 64},
    {49, 300, 67, 61},
    // The left matrix, transposed, with rows of 8 KiB (4 in float), which is copied from 64 terms
    // on if there is more than one panel: parts of a block, and blocks with and without a
    // remainder.
    {33, 64, 65, 3, 991},
    {64, 63, 130, 3, 960},
    {130, 257, 66, 3, 894},
    {193, 70, 96, 64, 831},
};
constexpr int64_t kGap = 3;  // elements between two rows of the result, which must not change

enum class Start { kZero, kOld, kBias };  ///< what the sum of products is added to

template <class T>
void expect_matches_reference(const Sizes& s, bool transposed, bool right_transposed, Start start) {
  ProductParams p = {};
  p.rows = s.rows, p.depth = s.depth, p.columns = s.columns, p.add = start == Start::kOld;
  p.left_row = transposed ? 1 : s.depth;
  p.left_step = transposed ? s.rows + s.left_gap : 1;
  p.right_row = right_transposed ? 1 : s.columns + s.right_gap;
  p.right_column = right_transposed ? s.depth + s.right_gap : 1;
  p.out_row = s.columns + kGap;
  // Elements of memory up to the last one that belongs to the matrix.
  const auto extent = [](int64_t rows, int64_t row, int64_t columns, int64_t column) {
    return rows * columns == 0 ? 0 : (rows - 1) * row + (columns - 1) * column + 1;
  };
  const std::vector<T> left = normal<T>(extent(s.rows, p.left_row, s.depth, p.left_step), 1);
  const std::vector<T> right =
      normal<T>(extent(s.depth, p.right_row, s.columns, p.right_column), 2);
  const std::vector<T> before = normal<T>(extent(s.rows, p.out_row, s.columns, 1), 3);
  const std::vector<T> bias = normal<T>(s.columns, 4);
  std::vector<double> expected(before.begin(), before.end());
  for (int64_t r = 0; r < s.rows; ++r) {
    for (int64_t c = 0; c < s.columns; ++c) {
      double& sum = expected[r * p.out_row + c];
      if (start != Start::kOld) sum = start == Start::kBias ? static_cast<double>(bias[c]) : 0.0;
      for (int64_t n = 0; n < s.depth; ++n) {
        sum += static_cast<double>(left[r * p.left_row + n * p.left_step]) *
               right[n * p.right_row + c * p.right_column];
      }
    }
  }
  for (const KernelTable* table : supported_kernels()) {
    const std::string text = std::string(table->name) + ": " + std::to_string(s.rows) + " x " +
                             std::to_string(s.depth) + " x " + std::to_string(s.columns) +
                             (transposed ? ", left transposed" : "") +
                             (right_transposed ? ", right transposed" : "");
    testing::describe_guarded_call(text.c_str());
    for (const Place place : {Place::kAfterGuard, Place::kBeforeGuard}) {
      // Panels are copied only if many units run at once.
      const bool one_by_one = place == Place::kAfterGuard;
      Memory memory(place);
      p.left = memory.copy("left", left), p.right = memory.copy("right", right);
      if (start == Start::kBias) p.bias = memory.copy("bias", bias);
      T* out = memory.copy("out", before);
      p.out = out;
      const WorkPlan plan = typed<T>(*table).product_plan(p);
      const int64_t step = one_by_one ? 1 : std::max<int64_t>(plan.units, 1);
      for (int64_t unit = plan.units - step; unit >= 0; unit -= step) {
        typed<T>(*table).product(p, unit, unit + step);
      }
      for (size_t i = 0; i < before.size(); ++i) {
        const bool between = static_cast<int64_t>(i) % p.out_row >= s.columns;
        // Sums of up to 300 products of standard normal values stay below 64.
        const double allowed =
            between ? 0 : 64 * 8 * static_cast<double>(std::numeric_limits<T>::epsilon());
        ASSERT_NEAR(out[i], expected[i], allowed) << text << " at " << i;
      }
    }
  }
}

std::vector<Sizes> all_sizes() {
  std::vector<Sizes> sizes(std::begin(kNamedSizes), std::end(kNamedSizes));
  for (int64_t n = 1; n <= 70; ++n) {
    sizes.push_back({5, 9, n});
    sizes.push_back({n, 3, 18});
    sizes.push_back({3, n, 17});
  }
  return sizes;
}

template <class T>
void expect_all() {
  for (const Sizes& sizes : all_sizes()) {
    for (const bool transposed : {false, true}) {
      for (const bool right_transposed : {false, true}) {
        for (const Start start : {Start::kZero, Start::kOld, Start::kBias}) {
          expect_matches_reference<T>(sizes, transposed, right_transposed, start);
        }
      }
    }
  }
}

TEST(MatrixProduct, FloatMatchesReference) { expect_all<float>(); }
TEST(MatrixProduct, DoubleMatchesReference) { expect_all<double>(); }

}  // namespace
}  // namespace flash
