#include "csrc/dispatch.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <stdexcept>
#include <string>

namespace flash {
namespace {

using testing::HasSubstr;
using testing::Property;
using testing::Throws;

std::string chosen(const char* isa, const char* aten) { return choose_kernels(isa, aten).name; }

const KernelTable& best_supported() {
  for (const KernelTable* table : all_kernels()) {
    if (table->supported()) return *table;
  }
  return scalar_kernels();
}

TEST(Dispatch, ChoosesTheBestSupportedTable) {
  EXPECT_EQ(chosen(nullptr, nullptr), best_supported().name);
  EXPECT_EQ(chosen("", ""), best_supported().name);
}

TEST(Dispatch, FindsEveryTableByName) {
  for (const KernelTable* table : all_kernels()) {
    if (!table->supported()) continue;
    EXPECT_EQ(&choose_kernels(table->name, nullptr), table);
  }
}

TEST(Dispatch, ScalarIsAlwaysSupportedAndOnlyEmulationComesAfterIt) {
  const auto& tables = all_kernels();
  const auto scalar = std::find(tables.begin(), tables.end(), &scalar_kernels());
  ASSERT_NE(scalar, tables.end());
  for (auto table = scalar + 1; table != tables.end(); ++table) {
    EXPECT_STREQ((*table)->name, "amx-emulated");
  }
  EXPECT_TRUE(scalar_kernels().supported());
  EXPECT_EQ(chosen("scalar", nullptr), "scalar");
}

TEST(Dispatch, RespectsAtenCpuCapability) {
#if defined(__aarch64__)  // NEON is part of the baseline, and torch ignores the other names
  for (const char* name : {"default", "avx2", "avx512", "sve256"}) {
    EXPECT_EQ(chosen(nullptr, name), "neon");
  }
#else
  EXPECT_EQ(chosen(nullptr, "default"), "scalar");
  EXPECT_THAT(chosen(nullptr, "avx2"), testing::AnyOf("avx2", "scalar"));
  EXPECT_THAT(chosen(nullptr, "avx512"), testing::AnyOf("avx512-bf16", "avx512", "avx2", "scalar"));
#endif
}

TEST(Dispatch, FlashAttentionIsaOverridesAtenCpuCapability) {
  const char* best = best_supported().name;
  EXPECT_EQ(chosen(best, "default"), best);
}

TEST(Dispatch, OnlyTheEnvironmentAsksForKernels) {
  const char* isa = std::getenv("FLASH_ATTENTION_ISA");
  const bool is_set = isa != nullptr && *isa != '\0';
  EXPECT_EQ(kernels_are_asked_for(), is_set);
  const char* before = use_kernels("scalar").name;
  EXPECT_EQ(kernels_are_asked_for(), is_set);
  use_kernels(before);
}

TEST(Dispatch, UnknownNameThrowsAndListsTheKnownOnes) {
  EXPECT_THAT(
      [] { choose_kernels("sse9", nullptr); },
      Throws<std::invalid_argument>(Property(
          &std::exception::what, testing::AllOf(HasSubstr("got 'sse9'"), HasSubstr("scalar"),
                                                HasSubstr("FLASH_ATTENTION_ISA")))));
}

}  // namespace
}  // namespace flash
