#include <gtest/gtest.h>

#include <string>

#include "tests/csrc/exp_check.h"
#include "tests/csrc/isa.h"

namespace flash {
namespace {

// The bounds of generic/exp.h. Without a fused multiply-add, each step of the polynomial rounds
// twice, which adds at most half an ulp.
struct Case {
  const char* isa;
  const char* dtype;
  ExpReport (*check)();
  double bound;
  double (*check_every_float)() = nullptr;
};

const Case kCases[] = {
    {"scalar", "float", scalar_exp_float, 2.5, scalar_exp_of_every_float},
    {"scalar", "double", scalar_exp_double, 2.0},
#if defined(__x86_64__)
    {"avx2", "float", avx2_exp_float, 2.1, avx2_exp_of_every_float},
    {"avx2", "double", avx2_exp_double, 1.6},
    {"avx512", "float", avx512_exp_float, 3.1, avx512_exp_of_every_float},
    {"avx512", "double", avx512_exp_double, 2.3},
#elif defined(__aarch64__)
    {"neon", "float", neon_exp_float, 2.1, neon_exp_of_every_float},
    {"neon", "double", neon_exp_double, 1.6},
#endif
};

TEST(Exp2, StaysWithinItsUlpBoundOnEveryIsa) {
  for (const KernelTable* table : testing::supported_kernels()) {
    int checked = 0;
    for (const Case& c : kCases) {
      if (std::string(c.isa) != table->name) continue;
      SCOPED_TRACE(std::string(c.isa) + " " + c.dtype);
      const ExpReport report = c.check();
      EXPECT_LE(report.worst_ulp, c.bound);
      EXPECT_TRUE(report.zero_below_range);
      EXPECT_TRUE(report.one_at_zero);
      EXPECT_TRUE(report.keeps_nan);
      ++checked;
    }
    EXPECT_EQ(checked, 2) << "no test case for instruction set " << table->name;
  }
}

// Takes a minute per instruction set; `make stress` runs it.
TEST(Exp2, DISABLED_StaysWithinItsUlpBoundForEveryFloat) {
  for (const KernelTable* table : testing::supported_kernels()) {
    for (const Case& c : kCases) {
      if (std::string(c.isa) != table->name || c.check_every_float == nullptr) continue;
      SCOPED_TRACE(c.isa);
      const double worst = c.check_every_float();
      EXPECT_LE(worst, c.bound);
      RecordProperty(std::string(c.isa) + "_worst_ulp", std::to_string(worst));
    }
  }
}

}  // namespace
}  // namespace flash
