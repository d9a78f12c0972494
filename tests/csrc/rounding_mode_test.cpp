// The rounding mode is a property of the thread, which the caller may have changed. The kernels
// round to nearest in any case, and restore the mode.

#include <gtest/gtest.h>

#include <cfenv>
#include <string>
#include <vector>

#include "tests/csrc/isa.h"
#include "tests/csrc/run.h"

// As in csrc/denormals.h. On other architectures, the kernels use the mode of the caller.
#if defined(__SSE2__) || defined(__aarch64__)

namespace flash {
namespace {

using testing::Answer;
using testing::Options;
using testing::Problem;
using testing::supported_kernels;

constexpr int kOtherModes[] = {FE_UPWARD, FE_DOWNWARD, FE_TOWARDZERO};

/// Runs `call` in another rounding mode, which it must not change.
template <class Call>
auto in_rounding_mode(int mode, Call&& call) {
  std::fesetround(mode);
  auto result = call();
  const int left = std::fegetround();
  std::fesetround(FE_TONEAREST);
  EXPECT_EQ(left, mode);
  return result;
}

// Not lse, which the test itself computes with std::log.
void expect_same_bits(const Answer& got, const Answer& expected) {
  EXPECT_TRUE(got.out == expected.out);
  EXPECT_TRUE(got.dq == expected.dq);
  EXPECT_TRUE(got.dk == expected.dk);
  EXPECT_TRUE(got.dv == expected.dv);
  EXPECT_TRUE(got.dbias == expected.dbias);
  EXPECT_TRUE(got.dslopes == expected.dslopes);
  EXPECT_TRUE(got.dsinks == expected.dsinks);
}

template <class T>
void expect_nearest_attention(const Shape& shape, const Options& options) {
  const Problem<T> problem(shape, options);
  for (const KernelTable* table : supported_kernels()) {
    const Answer expected = testing::run(*table, problem);
    for (const int mode : kOtherModes) {
      SCOPED_TRACE(table->name + (": " + testing::describe(shape, options)));
      expect_same_bits(in_rounding_mode(mode, [&] { return testing::run(*table, problem); }),
                       expected);
    }
  }
}

TEST(RoundingMode, OfTheCallerDoesNotAffectAttention) {
  const Options all_options[] = {
      {.causal = true, .dropout = 0.3, .bias = BiasKind::kAdditive, .grad_lse = true},
      {.left = 30, .right = 9, .softcap = 2, .slopes = true, .sinks = 1},
  };
  for (Options options : all_options) {
    for (const int64_t queries : {2, 45}) {  // 2: decode
      const Shape shape = {1, 2, 1, 2, queries, 130, 17, 9};
      expect_nearest_attention<float>(shape, options);
      expect_nearest_attention<double>(shape, options);
      for (const Storage storage : {Storage::kBFloat16, Storage::kHalf}) {
        Options rounded = options;
        rounded.storage = storage;
        rounded.out_16_bit = true;
        expect_nearest_attention<float>(shape, rounded);
      }
    }
  }
}

template <class T>
std::vector<T> gelu_dropout_of(const TypedKernels& kernels, DropoutKind kind,
                               const std::vector<T>& x, const std::vector<T>& gradient) {
  std::vector<T> out(x.size());
  DropoutParams p = {};
  p.kind = kind;
  p.input = x.data();
  p.other = gradient.data();
  p.out = out.data();
  p.elements = static_cast<int64_t>(x.size());
  p.dropout = 0.3;
  p.seed = testing::kSeed;
  kernels.dropout(p, 0, kernels.dropout_plan(p).units);
  return out;
}

template <class T>
void expect_nearest_gelu() {
  const std::vector<T> x = testing::normal<T>(1000, 1), gradient = testing::normal<T>(1000, 2);
  for (const KernelTable* table : supported_kernels()) {
    for (const DropoutKind kind : {DropoutKind::kGelu, DropoutKind::kGeluGradient}) {
      const auto run = [&] {
        return gelu_dropout_of<T>(testing::typed<T>(*table), kind, x, gradient);
      };
      const std::vector<T> expected = run();
      for (const int mode : kOtherModes) {
        EXPECT_TRUE(in_rounding_mode(mode, run) == expected)
            << table->name << " kind " << static_cast<int>(kind) << " mode " << mode;
      }
    }
  }
}

TEST(RoundingMode, OfTheCallerDoesNotAffectGelu) {
  expect_nearest_gelu<float>();
  expect_nearest_gelu<double>();
}

}  // namespace
}  // namespace flash

#endif
