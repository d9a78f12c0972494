// Compares the attention of many small problems, on every instruction set, with a reference in
// double.

#include <cmath>

#include "tests/csrc/layers.h"

namespace flash {
namespace {

using testing::Dtypes;
using testing::expect_close;
using testing::Guarded;
using testing::GuardPage;
using testing::layers;
using testing::normal;
using testing::on_every_isa;

template <class T>
class LaneAttention : public testing::OnBothDtypes<T> {};
TYPED_TEST_SUITE(LaneAttention, Dtypes);

// Machine epsilons for an exponential and sums over up to 24 products of values below 4, thrice.
constexpr double kSums = 1024;
constexpr double kScale = 0.5;

struct Sizes {
  int64_t problems, queries, keys, head_dim, value_dim;
  int64_t gap;  ///< elements between two rows, and thrice as many between two problems
};
constexpr Sizes kSizes[] = {{1, 1, 1, 1, 1, 0},     {5, 3, 4, 3, 2, 1},    {16, 12, 12, 8, 8, 0},
                            {19, 12, 12, 24, 8, 2}, {33, 5, 17, 16, 9, 0}, {8, 21, 6, 7, 16, 3}};

/// A matrix [rows, columns] per problem.
struct Layout {
  int64_t rows, columns, gap;
  int64_t row() const { return columns + gap; }
  int64_t problem() const { return rows * row() + 3 * gap; }
  int64_t at(int64_t problem_, int64_t r, int64_t c) const {
    return problem_ * problem() + r * row() + c;
  }
  int64_t size(int64_t problems) const { return at(problems - 1, rows - 1, columns - 1) + 1; }
};

/// The result of one problem and its gradients, from those of the result.
struct Reference {
  std::vector<double> out, query, key, value;

  template <class T>
  Reference(const Sizes& s, const std::vector<T>& q, const std::vector<T>& k,
            const std::vector<T>& v, const std::vector<T>& g)
      : out(s.problems * s.queries * s.value_dim),
        query(s.problems * s.queries * s.head_dim),
        key(s.problems * s.keys * s.head_dim),
        value(s.problems * s.keys * s.value_dim) {
    const Layout of_q = {s.queries, s.head_dim, s.gap}, of_k = {s.keys, s.head_dim, s.gap},
                 of_v = {s.keys, s.value_dim, s.gap};
    for (int64_t p = 0; p < s.problems; ++p) {
      for (int64_t i = 0; i < s.queries; ++i) {
        std::vector<double> weight(s.keys), to_weight(s.keys);
        double sum = 0, delta = 0;
        for (int64_t j = 0; j < s.keys; ++j) {
          double score = 0;
          for (int64_t c = 0; c < s.head_dim; ++c) {
            score += kScale * static_cast<double>(q[of_q.at(p, i, c)]) * k[of_k.at(p, j, c)];
          }
          sum += weight[j] = std::exp(score);
        }
        const int64_t row = (p * s.queries + i) * s.value_dim;
        for (int64_t j = 0; j < s.keys; ++j) {
          weight[j] /= sum;
          for (int64_t c = 0; c < s.value_dim; ++c) {
            const double element = v[of_v.at(p, j, c)], incoming = g[row + c];
            out[row + c] += weight[j] * element;
            to_weight[j] += incoming * element;
            value[(p * s.keys + j) * s.value_dim + c] += weight[j] * incoming;
          }
          delta += weight[j] * to_weight[j];
        }
        for (int64_t j = 0; j < s.keys; ++j) {
          const double to_score = kScale * weight[j] * (to_weight[j] - delta);
          for (int64_t c = 0; c < s.head_dim; ++c) {
            query[(p * s.queries + i) * s.head_dim + c] += to_score * k[of_k.at(p, j, c)];
            key[(p * s.keys + j) * s.head_dim + c] += to_score * q[of_q.at(p, i, c)];
          }
        }
      }
    }
  }
};

TYPED_TEST(LaneAttention, MatchesReferenceWithGradients) {
  using T = TypeParam;
  for (const Sizes& s : kSizes) {
    SCOPED_TRACE(::testing::Message() << s.problems << " problems of " << s.queries << " x "
                                      << s.keys << " x " << s.head_dim << " x " << s.value_dim);
    const Layout of_q = {s.queries, s.head_dim, s.gap}, of_k = {s.keys, s.head_dim, s.gap},
                 of_v = {s.keys, s.value_dim, s.gap};
    const auto q = normal<T>(of_q.size(s.problems), 1), k = normal<T>(of_k.size(s.problems), 2),
               v = normal<T>(of_v.size(s.problems), 3),
               g = normal<T>(s.problems * s.queries * s.value_dim, 4);
    const Reference expected(s, q, k, v, g);
    on_every_isa([&](const KernelTable& table, GuardPage guard) {
      const auto empty = [](const std::vector<double>& like) {
        return std::vector<T>(like.size());
      };
      const Guarded<T> query(q, guard), key(k, guard), value(v, guard), gradient(g, guard),
          out(empty(expected.out), guard), of_query(empty(expected.query), guard),
          of_key(empty(expected.key), guard), of_value(empty(expected.value), guard);
      const LaneAttentionParams<T> p = {.query = query,
                                        .key = key,
                                        .value = value,
                                        .query_problem = of_q.problem(),
                                        .key_problem = of_k.problem(),
                                        .value_problem = of_v.problem(),
                                        .out_problem = s.queries * s.value_dim,
                                        .query_row = of_q.row(),
                                        .key_row = of_k.row(),
                                        .value_row = of_v.row(),
                                        .out_row = s.value_dim,
                                        .problems = s.problems,
                                        .queries = s.queries,
                                        .keys = s.keys,
                                        .head_dim = s.head_dim,
                                        .value_dim = s.value_dim,
                                        .scale = static_cast<T>(kScale)};
      const LayerKernels<T>& kernels = layers<T>(table);
      const Guarded<T> scratch(std::vector<T>(kernels.lane_attention_scratch(p)), guard);
      kernels.lane_attention(p, out, scratch);
      expect_close("out", out, expected.out, kSums);
      kernels.lane_attention_backward(p, {gradient, of_query, of_key, of_value}, scratch);
      expect_close("query", of_query, expected.query, kSums);
      expect_close("key", of_key, expected.key, kSums);
      expect_close("value", of_value, expected.value, kSums);
    });
  }
}

TYPED_TEST(LaneAttention, AddsTheScoresOfEarlierCalls) {
  using T = TypeParam;
  // Two calls of half the width, against one of the whole.
  const Sizes s = {19, 5, 7, 12, 9, 0};
  constexpr int64_t kHalf = 6, kWide = 40;  // rows of the output, of which each problem has a part
  const auto q = normal<T>(s.problems * s.queries * s.head_dim, 1),
             k = normal<T>(s.problems * s.keys * s.head_dim, 2),
             v = normal<T>(s.problems * s.keys * s.value_dim, 3);
  const std::vector<T> unused(s.problems * s.queries * s.value_dim);
  const Reference expected(s, q, k, v, unused);
  on_every_isa([&](const KernelTable& table, GuardPage guard) {
    const Guarded<T> query(q, guard), key(k, guard), value(v, guard);
    const LayerKernels<T>& kernels = layers<T>(table);
    LaneAttentionParams<T> p = {.query = query,
                                .key = key,
                                .value = value,
                                .query_problem = s.queries * s.head_dim,
                                .key_problem = s.keys * s.head_dim,
                                .value_problem = s.keys * s.value_dim,
                                .out_problem = s.queries * kWide,
                                .query_row = s.head_dim,
                                .key_row = s.head_dim,
                                .value_row = s.value_dim,
                                .out_row = kWide,
                                .problems = s.problems,
                                .queries = s.queries,
                                .keys = s.keys,
                                .head_dim = kHalf,
                                .value_dim = s.value_dim,
                                .scale = static_cast<T>(kScale)};
    const Guarded<T> scratch(std::vector<T>(kernels.lane_attention_scratch(p)), guard),
        scores(std::vector<T>(kernels.lane_attention_scores(p)), guard),
        out(std::vector<T>((s.problems * s.queries - 1) * kWide + s.value_dim), guard);
    p.scores = scores;
    kernels.lane_attention(p, out, scratch);
    p.query += kHalf, p.key += kHalf;
    kernels.lane_attention(p, out, scratch);
    std::vector<double> wide((s.problems * s.queries - 1) * kWide + s.value_dim);
    for (int64_t r = 0; r < s.problems * s.queries; ++r) {
      std::copy_n(expected.out.begin() + r * s.value_dim, s.value_dim, wide.begin() + r * kWide);
    }
    expect_close("out", out, wide, kSums);
  });
}

TYPED_TEST(LaneAttention, LanesDoNotShareNonFiniteNumbers) {
  using T = TypeParam;
  constexpr int64_t kProblems = 9, kLength = 3, kWidth = 4, kBad = 5;
  auto q = normal<T>(kProblems * kLength * kWidth, 1);
  const auto k = normal<T>(q.size(), 2), v = normal<T>(q.size(), 3);
  q[kBad * kLength * kWidth] = std::numeric_limits<T>::quiet_NaN();
  on_every_isa([&](const KernelTable& table, GuardPage guard) {
    const Guarded<T> query(q, guard), key(k, guard), value(v, guard),
        out(std::vector<T>(q.size()), guard);
    constexpr int64_t kProblem = kLength * kWidth;
    const LaneAttentionParams<T> p = {.query = query,
                                      .key = key,
                                      .value = value,
                                      .query_problem = kProblem,
                                      .key_problem = kProblem,
                                      .value_problem = kProblem,
                                      .out_problem = kProblem,
                                      .query_row = kWidth,
                                      .key_row = kWidth,
                                      .value_row = kWidth,
                                      .out_row = kWidth,
                                      .problems = kProblems,
                                      .queries = kLength,
                                      .keys = kLength,
                                      .head_dim = kWidth,
                                      .value_dim = kWidth,
                                      .scale = T(1)};
    const LayerKernels<T>& kernels = layers<T>(table);
    const Guarded<T> scratch(std::vector<T>(kernels.lane_attention_scratch(p)), guard);
    kernels.lane_attention(p, out, scratch);
    const std::vector<T> found = out.values();
    for (int64_t i = 0; i < static_cast<int64_t>(found.size()); ++i) {
      const bool is_bad = i / kWidth == kBad * kLength;  // the first row of one problem
      ASSERT_EQ(std::isnan(found[i]), is_bad) << "at " << i;
    }
  });
}

}  // namespace
}  // namespace flash
