#include <ATen/Parallel.h>
#include <flash_attention/matrix_product.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "ops/testing.h"

namespace flash {
namespace {

using at::Tensor;
using testing::AllOf;
using testing::HasSubstr;
using tests::largest_difference;
using tests::message_of;

TEST(MatrixProduct, EqualsTheDefinition) {
  torch::manual_seed(3);
  for (const at::ScalarType dtype : {at::kFloat, at::kDouble}) {
    for (int64_t n = 1; n <= 70; ++n) {
      const Tensor left = at::randn({n, 1 + n * 7 % 200}, dtype);
      const Tensor right = at::randn({left.size(1), 1 + n * 5 % 90}, dtype);
      const Tensor expected = at::mm(left.to(at::kDouble), right.to(at::kDouble));
      const double allowed = 64 * tests::tolerance(dtype);
      Tensor out = at::full({n, right.size(1)}, NAN, left.options());
      matrix_product(left, right, out);
      EXPECT_LE(largest_difference(out, expected), allowed);
      matrix_product(left, right.t().contiguous().t(), out, ProductResult::kAdd);
      EXPECT_LE(largest_difference(out, 2 * expected), allowed);
      const Tensor bias = at::randn({right.size(1)}, dtype);
      matrix_product_with_bias(left, right, bias, out);
      EXPECT_LE(largest_difference(out, expected + bias), allowed);
    }
  }
}

TEST(MatrixProduct, AcceptsATransposedLeftAndSubmatrices) {
  const Tensor left = at::randn({40, 30}, at::kDouble), right = at::randn({40, 50}, at::kDouble);
  const Tensor all = at::zeros({30, 64}, at::kDouble);
  matrix_product(left.t(), right.narrow(1, 8, 20), all.narrow(1, 4, 20));
  EXPECT_LE(largest_difference(all.narrow(1, 4, 20), left.t().mm(right.narrow(1, 8, 20))), 1e-13);
  EXPECT_EQ(all.narrow(1, 24, 40).abs().max().item<double>(), 0);
}

TEST(MatrixProduct, BitsDoNotDependOnTheNumberOfThreads) {
  const Tensor left = at::randn({500, 130}), right = at::randn({130, 90});
  Tensor alone = at::empty({500, 90}), shared = at::empty({500, 90});
  const int threads = at::get_num_threads();
  at::set_num_threads(1);
  matrix_product(left, right, alone);
  at::set_num_threads(4);
  matrix_product(left, right, shared);
  at::set_num_threads(threads);
  EXPECT_TRUE(at::equal(shared, alone));
}

TEST(MatrixProduct, ErrorsSayWhatWasExpected) {
  const Tensor left = at::zeros({3, 4}), right = at::zeros({4, 5});
  Tensor out = at::zeros({3, 5});
  constexpr char kOp[] = "flash::matrix_product: expected ";
  const auto value_error = [](const Tensor& a, const Tensor& b, const Tensor& c) {
    return message_of<c10::ValueError>([&] { matrix_product(a, b, c); });
  };
  EXPECT_THAT(value_error(left, right.t(), out), AllOf(HasSubstr(kOp), HasSubstr("[5, 4]")));
  EXPECT_THAT(value_error(left, at::zeros({4, 10}).slice(1, 0, 10, 2), out),
              AllOf(HasSubstr(kOp), HasSubstr("contiguous")));
  EXPECT_THAT(value_error(left, right, at::zeros({5, 3}).t()),
              AllOf(HasSubstr(kOp), HasSubstr("contiguous")));
  EXPECT_THAT(message_of<c10::ValueError>(
                  [&] { matrix_product_with_bias(left, right, at::zeros({4}), out); }),
              AllOf(HasSubstr(kOp), HasSubstr("bias [5], got [4]")));
  EXPECT_THAT(message_of<c10::TypeError>([&] { matrix_product(left, right.to(at::kDouble), out); }),
              AllOf(HasSubstr(kOp), HasSubstr("Double")));
  EXPECT_THAT(message_of<c10::TypeError>(
                  [&] { matrix_product(left.to(at::kInt), right.to(at::kInt), out); }),
              AllOf(HasSubstr(kOp), HasSubstr("Int")));
}

}  // namespace
}  // namespace flash
