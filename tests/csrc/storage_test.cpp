// Conversions of the 16-bit types: correct rounding, and the same results on every instruction set.

#include "csrc/storage.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>

#include "tests/csrc/isa.h"
#include "tests/csrc/storage_check.h"

namespace flash {
namespace {

template <class Stored>
Stored from_bits(uint32_t bits) {
  return {static_cast<uint16_t>(bits)};
}

template <class Stored>
uint16_t rounded(float x) {
  Stored result;
  round_to(x, &result);
  return result.bits;
}

template <class Stored>
class StorageOf : public ::testing::Test {};
using Formats = ::testing::Types<BFloat16, Half>;
TYPED_TEST_SUITE(StorageOf, Formats);

TYPED_TEST(StorageOf, EveryValueRoundTrips) {
  for (uint32_t bits = 0; bits < 1 << 16; ++bits) {
    const float x = to_float(from_bits<TypeParam>(bits));
    if (std::isnan(x)) {
      EXPECT_TRUE(std::isnan(to_float(from_bits<TypeParam>(rounded<TypeParam>(x)))));
    } else {
      ASSERT_EQ(rounded<TypeParam>(x), bits) << x;
    }
  }
}

TYPED_TEST(StorageOf, RoundsToNearestTiesToEven) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (uint32_t bits = 0; to_float(from_bits<TypeParam>(bits + 1)) < kInfinity; ++bits) {
    const double low = to_float(from_bits<TypeParam>(bits));
    const double high = to_float(from_bits<TypeParam>(bits + 1));
    const auto middle = static_cast<float>((low + high) / 2);
    if (middle != (low + high) / 2) continue;  // not representable: a denormal float32
    for (const float sign : {1.0f, -1.0f}) {
      const uint32_t s = sign < 0 ? 0x8000 : 0;
      ASSERT_EQ(rounded<TypeParam>(sign * middle), (bits % 2 == 0 ? bits : bits + 1) | s);
      ASSERT_EQ(rounded<TypeParam>(sign * std::nextafter(middle, 0.0f)), bits | s);
      ASSERT_EQ(rounded<TypeParam>(sign * std::nextafter(middle, kInfinity)), (bits + 1) | s);
    }
  }
}

TEST(Storage, OverflowGivesInfinity) {
  EXPECT_EQ(to_float(from_bits<Half>(rounded<Half>(65519.0f))), 65504.0f);
  EXPECT_TRUE(std::isinf(to_float(from_bits<Half>(rounded<Half>(65520.0f)))));
  EXPECT_TRUE(std::isinf(to_float(from_bits<Half>(rounded<Half>(1e30f)))));
  const float most = std::numeric_limits<float>::max();
  EXPECT_TRUE(std::isinf(to_float(from_bits<BFloat16>(rounded<BFloat16>(most)))));
}

TEST(Storage, EveryIsaConvertsIdentically) {
  struct Case {
    const char* isa;
    StorageReport (*check)();
  };
  const Case cases[] = {
    {"scalar", scalar_bfloat16},
    {"scalar", scalar_half},
#if defined(__x86_64__)
    {"avx2", avx2_bfloat16},
    {"avx2", avx2_half},
    {"avx512", avx512_bfloat16},
    {"avx512", avx512_half},
#elif defined(__aarch64__)
    {"neon", neon_bfloat16},
    {"neon", neon_half},
#endif
  };
  for (const KernelTable* table : testing::supported_kernels()) {
    int checked = 0;
    for (const Case& c : cases) {
      if (std::string(c.isa) != table->name) continue;
      SCOPED_TRACE(std::string(c.isa) + (checked == 0 ? " bfloat16" : " half"));
      const StorageReport report = c.check();
      EXPECT_EQ(report.wrong_loads, 0);
      EXPECT_EQ(report.wrong_stores, 0);
      ++checked;
    }
    EXPECT_EQ(checked, 2) << "no test case for instruction set " << table->name;
  }
}

}  // namespace
}  // namespace flash
