// Time delay kernels of every instruction set against the definition, without Torch.

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
  int64_t batch, times, channels, delays;
  bool shared;
};
const Sizes kSizes[] = {{1, 1, 1, 1, true},      {2, 7, 5, 3, false},   {1, 33, 16, 4, true},
                        {3, 40, 17, 5, false},   {2, 70, 70, 9, false}, {2, 64, 128, 6, true},
                        {1, 130, 200, 2, false}, {2, 5, 0, 2, true},    {2, 5, 3, 0, false},
                        {0, 5, 3, 2, true},      {1, 20, 600, 1, false}};

/// Rows of `channels` numbers apart by a few more, which must stay as they are.
constexpr int64_t kGap = 3;

template <class T>
struct Problem {
  Sizes s;
  int64_t row, series;
  std::vector<T> a, b, weights;
  std::vector<int64_t> delay;

  explicit Problem(const Sizes& sizes)
      : s(sizes), row(s.channels + kGap), series(s.times * row + 1) {
    a = normal<T>(s.batch * series, 1);
    b = normal<T>(s.batch * series, 2);
    weights = normal<T>(s.batch * s.delays, 3);
    std::mt19937_64 random(4);
    delay.resize((s.shared ? 1 : s.batch) * s.delays);
    for (int64_t& d : delay) d = static_cast<int64_t>(random() % s.times);
  }
  Delays delays() const { return {delay.data(), s.shared ? 0 : s.delays}; }
  int64_t delay_of(int64_t batch, int64_t i) const {
    return delay[(s.shared ? 0 : batch * s.delays) + i];
  }
  int64_t at(int64_t batch, int64_t t, int64_t c) const { return batch * series + t * row + c; }
};

class TimeDelayOnEveryIsa : public ::testing::TestWithParam<const KernelTable*> {};

template <class T>
void expect_aggregation(const KernelTable& table) {
  for (const Sizes& s : kSizes) {
    SCOPED_TRACE(::testing::Message()
                 << "times " << s.times << " channels " << s.channels << " delays " << s.delays);
    const Problem<T> x(s);
    std::vector<T> out(x.a.size(), T(77));
    AggregationParams p = {};
    p.batch = s.batch, p.times = s.times, p.channels = s.channels, p.delays = s.delays;
    p.delay = x.delays();
    p.value = {x.a.data(), x.series, x.row};
    p.weights = x.weights.data();
    p.out = {out.data(), x.series, x.row};
    const WorkPlan plan = typed<T>(table).aggregation_plan(p);
    for (int64_t unit = plan.units - 1; unit >= 0; --unit) {
      typed<T>(table).aggregation(p, unit, unit + 1);
    }
    int64_t untouched = 0;
    for (const T y : out) untouched += y == T(77);
    EXPECT_EQ(untouched, s.batch * (x.series - s.times * s.channels));
    for (int64_t b = 0; b < s.batch; ++b) {
      for (int64_t t = 0; t < s.times; ++t) {
        for (int64_t c = 0; c < s.channels; ++c) {
          double sum = 0;
          for (int64_t i = 0; i < s.delays; ++i) {
            sum += static_cast<double>(x.weights[b * s.delays + i]) *
                   x.a[x.at(b, (t + x.delay_of(b, i)) % s.times, c)];
          }
          // Up to nine products of numbers up to 4.
          ASSERT_NEAR(out[x.at(b, t, c)], sum,
                      64 * static_cast<double>(std::numeric_limits<T>::epsilon()));
        }
      }
    }
  }
}

template <class T>
void expect_correlation(const KernelTable& table) {
  for (const Sizes& s : kSizes) {
    SCOPED_TRACE(::testing::Message()
                 << "times " << s.times << " channels " << s.channels << " delays " << s.delays);
    const Problem<T> x(s);
    std::vector<T> out(s.batch * s.delays, T(77));
    CorrelationParams p = {};
    p.batch = s.batch, p.times = s.times, p.channels = s.channels, p.delays = s.delays;
    p.delay = x.delays();
    p.query = {x.a.data(), x.series, x.row};
    p.key = {x.b.data(), x.series, x.row};
    p.scale = 0.125;
    p.out = out.data();
    const WorkPlan plan = typed<T>(table).correlation_plan(p);
    for (int64_t unit = plan.units - 1; unit >= 0; --unit) {
      typed<T>(table).correlation(p, unit, unit + 1);
    }
    for (int64_t b = 0; b < s.batch; ++b) {
      for (int64_t i = 0; i < s.delays; ++i) {
        double sum = 0, size = 0;
        for (int64_t t = 0; t < s.times; ++t) {
          for (int64_t c = 0; c < s.channels; ++c) {
            const double product =
                static_cast<double>(x.a[x.at(b, (t + x.delay_of(b, i)) % s.times, c)]) *
                x.b[x.at(b, t, c)];
            sum += product;
            size += std::abs(product);
          }
        }
        // Chains of some 64 terms, of random signs: a few units of all that was added.
        ASSERT_NEAR(out[b * s.delays + i], 0.125 * sum,
                    4 * size * static_cast<double>(std::numeric_limits<T>::epsilon()));
      }
    }
  }
}

TEST_P(TimeDelayOnEveryIsa, AggregationIsTheDefinition) {
  expect_aggregation<float>(*GetParam());
  expect_aggregation<double>(*GetParam());
}
TEST_P(TimeDelayOnEveryIsa, CorrelationIsTheDefinition) {
  expect_correlation<float>(*GetParam());
  expect_correlation<double>(*GetParam());
}

INSTANTIATE_TEST_SUITE_P(Isa, TimeDelayOnEveryIsa,
                         ::testing::ValuesIn(testing::supported_kernels()),
                         [](const auto& info) { return std::string(info.param->name); });

}  // namespace
}  // namespace flash
