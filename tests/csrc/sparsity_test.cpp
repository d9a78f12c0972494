// Compares the sparsity measurement of every instruction set with a reference in double. Every
// array is between two guard pages.

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
using testing::supported_kernels;
using testing::typed;

struct Sizes {
  int64_t batch, heads, queries, keys, head_dim, samples;
};

std::vector<Sizes> all_sizes() {
  std::vector<Sizes> sizes = {
      {1, 1, 1, 1, 1, 1},     {2, 3, 7, 5, 3, 4},     {1, 2, 33, 40, 16, 16},
      {2, 1, 70, 50, 32, 21}, {1, 2, 16, 96, 64, 17}, {1, 1, 5, 9, 67, 33},
      {1, 1, 3, 4, 0, 2},     {0, 2, 3, 4, 5, 6},     {1, 2, 0, 4, 5, 6}};
  // Every width up to more than the largest specialized one, 4 vectors of 16.
  for (int64_t width = 1; width <= 66; ++width) sizes.push_back({1, 1, 3, 5, width, 4});
  for (const int64_t pairs : {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17}) {
    sizes.push_back({1, 1, 1, 6, 8, pairs});
    sizes.push_back({1, 1, pairs, 6, 9, 1});
  }
  return sizes;
}

template <class T>
void expect_matches_reference(const Sizes& s) {
  // [batch, length, heads, width] in memory, as in the models.
  const std::vector<T> query = normal<T>(s.batch * s.heads * s.queries * s.head_dim, 1);
  const std::vector<T> key = normal<T>(s.batch * s.heads * s.keys * s.head_dim, 2);
  std::vector<int64_t> index(s.queries * s.samples);
  std::mt19937_64 random(3);
  for (int64_t& j : index) j = static_cast<int64_t>(random() % s.keys);
  const int64_t row = s.heads * s.head_dim;
  std::vector<double> expected(s.batch * s.heads * s.queries);
  for (int64_t i = 0; i < static_cast<int64_t>(expected.size()); ++i) {
    const int64_t b = i / (s.heads * s.queries), h = i / s.queries % s.heads, q = i % s.queries;
    double top = -HUGE_VAL, sum = 0;
    for (int64_t j = 0; j < s.samples; ++j) {
      double dot = 0;
      for (int64_t d = 0; d < s.head_dim; ++d) {
        dot += static_cast<double>(query[(b * s.queries + q) * row + h * s.head_dim + d]) *
               key[(b * s.keys + index[q * s.samples + j]) * row + h * s.head_dim + d];
      }
      top = std::max(top, dot);
      sum += dot;
    }
    expected[i] = top - sum / static_cast<double>(s.keys);
  }
  SparsityParams p = {};
  p.batch = s.batch, p.heads = s.heads, p.queries = s.queries;
  p.keys = s.keys, p.head_dim = s.head_dim, p.samples = s.samples;
  for (const KernelTable* table : supported_kernels()) {
    const std::string text = std::string(table->name) + ": queries " + std::to_string(s.queries) +
                             " keys " + std::to_string(s.keys) + " width " +
                             std::to_string(s.head_dim) + " samples " + std::to_string(s.samples);
    testing::describe_guarded_call(text.c_str());
    for (const Place place : {Place::kAfterGuard, Place::kBeforeGuard}) {
      Memory memory(place);
      p.query = {memory.copy("query", query), {s.queries * row, s.head_dim, row}};
      p.key = {memory.copy("key", key), {s.keys * row, s.head_dim, row}};
      p.index = memory.copy("index", index);
      T* out = memory.array<T>("out", static_cast<int64_t>(expected.size()));
      p.out = out;
      const WorkPlan plan = typed<T>(*table).sparsity_plan(p);
      for (int64_t unit = plan.units - 1; unit >= 0; --unit) {
        typed<T>(*table).sparsity(p, unit, unit + 1);
      }
      for (size_t i = 0; i < expected.size(); ++i) {
        // Sums of up to 33 sums of up to 67 products stay below 64.
        ASSERT_NEAR(out[i], expected[i],
                    64 * 8 * static_cast<double>(std::numeric_limits<T>::epsilon()))
            << text;
      }
    }
  }
}

TEST(Sparsity, FloatMatchesReference) {
  for (const Sizes& sizes : all_sizes()) expect_matches_reference<float>(sizes);
}
TEST(Sparsity, DoubleMatchesReference) {
  for (const Sizes& sizes : all_sizes()) expect_matches_reference<double>(sizes);
}

}  // namespace
}  // namespace flash
