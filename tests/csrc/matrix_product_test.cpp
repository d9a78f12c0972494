// The matrix product of every instruction set against the definition, without Torch.

#include <gtest/gtest.h>

#include <limits>
#include <string>

#include "tests/csrc/isa.h"

namespace flash {
namespace {

using testing::normal;
using testing::typed;

struct Sizes {
  int64_t rows, depth, columns;
};
const Sizes kSizes[] = {{1, 1, 1},     {7, 5, 3},     {33, 128, 64},  {32, 129, 65},
                        {70, 300, 17}, {40, 64, 130}, {64, 257, 96},  {3, 0, 5},
                        {0, 3, 5},     {3, 5, 0},     {300, 260, 600}};

class MatrixProductOnEveryIsa : public ::testing::TestWithParam<const KernelTable*> {};

template <class T>
void expect_definition(const KernelTable& table, bool transposed, bool right_transposed, bool add) {
  for (const Sizes& s : kSizes) {
    SCOPED_TRACE(::testing::Message() << s.rows << " x " << s.depth << " x " << s.columns);
    constexpr int64_t kGap = 3;  // numbers between two rows that no product may read or write
    const int64_t out_row = s.columns + kGap;
    const std::vector<T> left = normal<T>(s.rows * s.depth, 1);
    const int64_t right_row = right_transposed ? 1 : out_row;
    const int64_t right_column = right_transposed ? s.depth + kGap : 1;
    const std::vector<T> right = normal<T>((s.depth + kGap) * out_row, 2),
                         before = normal<T>(s.rows * out_row, 3);
    std::vector<T> out = before;
    ProductParams p = {};
    p.left = left.data(), p.right = right.data(), p.out = out.data();
    p.left_row = transposed ? 1 : s.depth, p.left_step = transposed ? s.rows : 1;
    p.right_row = right_row, p.right_column = right_column, p.out_row = out_row;
    p.rows = s.rows, p.depth = s.depth, p.columns = s.columns, p.add = add;
    const WorkPlan plan = typed<T>(table).product_plan(p);
    for (int64_t unit = plan.units - 1; unit >= 0; --unit) {
      typed<T>(table).product(p, unit, unit + 1);
    }
    for (int64_t r = 0; r < s.rows; ++r) {
      for (int64_t c = 0; c < out_row; ++c) {
        const int64_t at = r * out_row + c;
        if (c >= s.columns) {
          ASSERT_EQ(out[at], before[at]);
          continue;
        }
        double sum = add ? before[at] : 0;
        for (int64_t n = 0; n < s.depth; ++n) {
          sum += static_cast<double>(left[r * p.left_row + n * p.left_step]) *
                 right[n * right_row + c * right_column];
        }
        // Up to 300 products of standard normal numbers: sums up to 64.
        ASSERT_NEAR(out[at], sum, 64 * 8 * static_cast<double>(std::numeric_limits<T>::epsilon()));
      }
    }
  }
}

template <class T>
void expect_all(const KernelTable& table) {
  for (const bool transposed : {false, true}) {
    for (const bool right_transposed : {false, true}) {
      for (const bool add : {false, true}) {
        expect_definition<T>(table, transposed, right_transposed, add);
      }
    }
  }
}

TEST_P(MatrixProductOnEveryIsa, FloatIsTheDefinition) { expect_all<float>(*GetParam()); }
TEST_P(MatrixProductOnEveryIsa, DoubleIsTheDefinition) { expect_all<double>(*GetParam()); }

INSTANTIATE_TEST_SUITE_P(Isa, MatrixProductOnEveryIsa,
                         ::testing::ValuesIn(testing::supported_kernels()),
                         [](const auto& info) { return std::string(info.param->name); });

}  // namespace
}  // namespace flash
