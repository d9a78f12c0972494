#include <gtest/gtest.h>

#include <string>

#include "tests/csrc/isa.h"
#include "tests/csrc/tanh_check.h"

namespace flash {
namespace {

// The bounds of generic/tanh.h. Without a fused multiply-add, each step rounds twice, which adds a
// tenth of an ulp.
struct Case {
  const char* isa;
  const char* dtype;
  TanhReport (*check)();
  double bound;
};

const Case kCases[] = {
    {"scalar", "float", scalar_tanh_float, 2.4}, {"scalar", "double", scalar_tanh_double, 2.3},
#if defined(__x86_64__)
    {"avx2", "float", avx2_tanh_float, 2.3},     {"avx2", "double", avx2_tanh_double, 2.3},
    {"avx512", "float", avx512_tanh_float, 2.3}, {"avx512", "double", avx512_tanh_double, 2.3},
#elif defined(__aarch64__)
    {"neon", "float", neon_tanh_float, 2.3},     {"neon", "double", neon_tanh_double, 2.3},
#endif
};

// The error of 1 - tanh^2, which the backward of a capped score uses: twice the error of tanh (an
// ulp below 1 is half an epsilon), plus the roundings of the square and the difference.
constexpr double kDerivativeBound = 2.5;

TEST(Tanh, StaysWithinItsUlpBoundOnEveryIsa) {
  for (const KernelTable* table : testing::supported_kernels()) {
    int checked = 0;
    for (const Case& c : kCases) {
      if (std::string(c.isa) != table->name) continue;
      SCOPED_TRACE(std::string(c.isa) + " " + c.dtype);
      const TanhReport report = c.check();
      EXPECT_LE(report.worst_ulp, c.bound);
      EXPECT_LE(report.worst_derivative, kDerivativeBound);
      EXPECT_TRUE(report.odd);
      EXPECT_TRUE(report.one_at_infinity);
      EXPECT_TRUE(report.zero_at_zero);
      EXPECT_TRUE(report.keeps_nan);
      ++checked;
    }
    EXPECT_EQ(checked, 2) << "no test case for instruction set " << table->name;
  }
}

}  // namespace
}  // namespace flash
