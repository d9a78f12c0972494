// The sparsity measurement of every instruction set against the definition, without Torch.

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>

#include "tests/csrc/isa.h"

namespace flash {
namespace {

using testing::normal;
using testing::typed;

struct Sizes {
  int64_t batch, heads, queries, keys, head_dim, samples;
};
const Sizes kSizes[] = {{1, 1, 1, 1, 1, 1},     {2, 3, 7, 5, 3, 4},     {1, 2, 33, 40, 16, 16},
                        {2, 1, 70, 50, 32, 21}, {1, 2, 16, 96, 64, 17}, {1, 1, 5, 9, 67, 33},
                        {1, 1, 3, 4, 0, 2},     {0, 2, 3, 4, 5, 6},     {1, 2, 0, 4, 5, 6}};

class SparsityOnEveryIsa : public ::testing::TestWithParam<const KernelTable*> {};

template <class T>
void expect_definition(const KernelTable& table) {
  for (const Sizes& s : kSizes) {
    SCOPED_TRACE(::testing::Message() << "queries " << s.queries << " keys " << s.keys << " width "
                                      << s.head_dim << " samples " << s.samples);
    // [batch, length, heads, width] in memory, as models have it.
    const std::vector<T> query = normal<T>(s.batch * s.heads * s.queries * s.head_dim, 1);
    const std::vector<T> key = normal<T>(s.batch * s.heads * s.keys * s.head_dim, 2);
    std::vector<int64_t> index(s.queries * s.samples);
    std::mt19937_64 random(3);
    for (int64_t& j : index) j = static_cast<int64_t>(random() % s.keys);
    const int64_t row = s.heads * s.head_dim;
    std::vector<T> out(s.batch * s.heads * s.queries, std::numeric_limits<T>::quiet_NaN());
    SparsityParams p = {};
    p.query = {query.data(), {s.queries * row, s.head_dim, row}};
    p.key = {key.data(), {s.keys * row, s.head_dim, row}};
    p.index = index.data();
    p.out = out.data();
    p.batch = s.batch, p.heads = s.heads, p.queries = s.queries;
    p.keys = s.keys, p.head_dim = s.head_dim, p.samples = s.samples;
    const WorkPlan plan = typed<T>(table).sparsity_plan(p);
    for (int64_t unit = plan.units - 1; unit >= 0; --unit) {
      typed<T>(table).sparsity(p, unit, unit + 1);
    }
    for (int64_t i = 0; i < static_cast<int64_t>(out.size()); ++i) {
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
      // Sums of up to 67 products, and of up to 33 of those: numbers up to 64.
      ASSERT_NEAR(out[i], top - sum / s.keys,
                  64 * 8 * static_cast<double>(std::numeric_limits<T>::epsilon()));
    }
  }
}

TEST_P(SparsityOnEveryIsa, FloatIsTheDefinition) { expect_definition<float>(*GetParam()); }
TEST_P(SparsityOnEveryIsa, DoubleIsTheDefinition) { expect_definition<double>(*GetParam()); }

INSTANTIATE_TEST_SUITE_P(Isa, SparsityOnEveryIsa, ::testing::ValuesIn(testing::supported_kernels()),
                         [](const auto& info) { return std::string(info.param->name); });

}  // namespace
}  // namespace flash
