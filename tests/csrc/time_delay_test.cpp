// Compares the time-delay kernels of every instruction set with references in double. Every array
// is between two guard pages.

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
  int64_t batch, times, channels, delays;
  bool shared;
};

std::vector<Sizes> all_sizes() {
  std::vector<Sizes> sizes = {{1, 1, 1, 1, true},      {2, 7, 5, 3, false},   {1, 33, 16, 4, true},
                              {3, 40, 17, 5, false},   {2, 70, 70, 9, false}, {2, 64, 128, 6, true},
                              {1, 130, 200, 2, false}, {2, 5, 0, 2, true},    {2, 5, 3, 0, false},
                              {0, 5, 3, 2, true},      {1, 20, 600, 1, false}};
  // Every number of channels up to more than four vectors of 16, and times and delays around the
  // size of a unit of work.
  for (int64_t channels = 1; channels <= 66; ++channels) {
    sizes.push_back({1, 5, channels, 3, channels % 2 == 0});
  }
  for (const int64_t times : {1, 2, 3, 31, 32, 33, 63, 64, 65}) {
    for (const int64_t delays : {1, 3, 4, 5, 8}) sizes.push_back({2, times, 7, delays, false});
  }
  return sizes;
}

/// Elements between two rows, which must not change.
constexpr int64_t kGap = 3;

template <class T>
struct Problem {
  Sizes s;
  int64_t row, series;
  std::vector<T> a, b, weights;
  std::vector<int64_t> delay;

  explicit Problem(const Sizes& sizes)
      : s(sizes), row(s.channels + kGap), series(s.times * row + 1) {
    a = normal<T>(extent(), 1);
    b = normal<T>(extent(), 2);
    weights = normal<T>(s.batch * s.delays, 3);
    std::mt19937_64 random(4);
    delay.resize((s.shared ? 1 : s.batch) * s.delays);
    for (int64_t& d : delay) d = static_cast<int64_t>(random() % s.times);
  }
  /// Elements of memory up to the last one that belongs to a series.
  int64_t extent() const {
    return s.batch * s.channels == 0 ? 0
                                     : (s.batch - 1) * series + (s.times - 1) * row + s.channels;
  }
  int64_t delay_of(int64_t batch, int64_t i) const {
    return delay[(s.shared ? 0 : batch * s.delays) + i];
  }
  int64_t at(int64_t batch, int64_t t, int64_t c) const { return batch * series + t * row + c; }
};

/// Calls f(kernels, memory, text) for every instruction set, with both placements of memory.
template <class T, class F>
void for_each_kernel(const Sizes& s, F&& f) {
  for (const KernelTable* table : supported_kernels()) {
    const std::string text = std::string(table->name) + ": times " + std::to_string(s.times) +
                             " channels " + std::to_string(s.channels) + " delays " +
                             std::to_string(s.delays);
    testing::describe_guarded_call(text.c_str());
    for (const Place place : {Place::kAfterGuard, Place::kBeforeGuard}) {
      Memory memory(place);
      f(typed<T>(*table), memory, text);
    }
  }
}

template <class T>
void expect_aggregation(const Sizes& s) {
  const Problem<T> x(s);
  std::vector<double> expected(x.extent(), 77);
  for (int64_t b = 0; b < s.batch; ++b) {
    for (int64_t t = 0; t < s.times; ++t) {
      for (int64_t c = 0; c < s.channels; ++c) {
        double sum = 0;
        for (int64_t i = 0; i < s.delays; ++i) {
          sum += static_cast<double>(x.weights[b * s.delays + i]) *
                 x.a[x.at(b, (t + x.delay_of(b, i)) % s.times, c)];
        }
        expected[x.at(b, t, c)] = sum;
      }
    }
  }
  AggregationParams p = {};
  p.batch = s.batch, p.times = s.times, p.channels = s.channels, p.delays = s.delays;
  for_each_kernel<T>(s, [&](const TypedKernels& kernels, Memory& memory, const std::string& text) {
    p.delay = {memory.copy("delays", x.delay), s.shared ? 0 : s.delays};
    p.value = {memory.copy("value", x.a), x.series, x.row};
    p.weights = memory.copy("weights", x.weights);
    T* out = memory.copy("out", std::vector<T>(x.extent(), T(77)));
    p.out = {out, x.series, x.row};
    const WorkPlan plan = kernels.aggregation_plan(p);
    for (int64_t unit = plan.units - 1; unit >= 0; --unit) kernels.aggregation(p, unit, unit + 1);
    for (size_t i = 0; i < expected.size(); ++i) {
      // Up to nine products of values up to 4. 77 is the value between rows.
      const double allowed =
          expected[i] == 77 ? 0 : 64 * static_cast<double>(std::numeric_limits<T>::epsilon());
      ASSERT_NEAR(out[i], expected[i], allowed) << text << " at " << i;
    }
  });
}

template <class T>
void expect_correlation(const Sizes& s) {
  const Problem<T> x(s);
  std::vector<double> expected(s.batch * s.delays), size(expected.size());
  for (int64_t b = 0; b < s.batch; ++b) {
    for (int64_t i = 0; i < s.delays; ++i) {
      for (int64_t t = 0; t < s.times; ++t) {
        for (int64_t c = 0; c < s.channels; ++c) {
          const double product =
              static_cast<double>(x.a[x.at(b, (t + x.delay_of(b, i)) % s.times, c)]) *
              x.b[x.at(b, t, c)];
          expected[b * s.delays + i] += 0.125 * product;
          size[b * s.delays + i] += std::abs(product);
        }
      }
    }
  }
  CorrelationParams p = {};
  p.batch = s.batch, p.times = s.times, p.channels = s.channels, p.delays = s.delays;
  p.scale = 0.125;
  for_each_kernel<T>(s, [&](const TypedKernels& kernels, Memory& memory, const std::string& text) {
    p.delay = {memory.copy("delays", x.delay), s.shared ? 0 : s.delays};
    p.query = {memory.copy("query", x.a), x.series, x.row};
    p.key = {memory.copy("key", x.b), x.series, x.row};
    T* out = memory.array<T>("out", s.batch * s.delays);
    p.out = out;
    const WorkPlan plan = kernels.correlation_plan(p);
    for (int64_t unit = plan.units - 1; unit >= 0; --unit) kernels.correlation(p, unit, unit + 1);
    for (size_t i = 0; i < expected.size(); ++i) {
      // Sums of some 64 terms with random signs: a few epsilons of the sum of absolute values.
      ASSERT_NEAR(out[i], expected[i],
                  4 * size[i] * static_cast<double>(std::numeric_limits<T>::epsilon()))
          << text;
    }
  });
}

TEST(TimeDelay, AggregationMatchesReference) {
  for (const Sizes& sizes : all_sizes()) {
    expect_aggregation<float>(sizes);
    expect_aggregation<double>(sizes);
  }
}
TEST(TimeDelay, CorrelationMatchesReference) {
  for (const Sizes& sizes : all_sizes()) {
    expect_correlation<float>(sizes);
    expect_correlation<double>(sizes);
  }
}

}  // namespace
}  // namespace flash
