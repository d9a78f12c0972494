#pragma once
// Shared by the tests of layer kernels: sizes around every vector width, memory next to guard
// pages, and comparison with a reference in double.

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "csrc/layer_kernels.h"
#include "tests/csrc/isa.h"

namespace flash::testing {

template <class T>
const LayerKernels<T>& layers(const KernelTable& table) {
  if constexpr (sizeof(T) == 4) {
    return *table.layers_f32;
  } else {
    return *table.layers_f64;
  }
}

/// Around one, two and several vectors of 4, 8 and 16 lanes: one less, equal, and one more.
inline const std::vector<int64_t> kWidths = {0,  1,  2,  3,  4,  5,  7,  8,  9,   15,  16,
                                             17, 31, 32, 33, 63, 64, 65, 96, 127, 130, 200};

/// Which end of an array is next to an inaccessible page. The other end is next to bytes that must
/// not change.
enum class GuardPage { kBefore, kAfter };

/// An array next to a guard page.
template <class T>
class Guarded {
 public:
  Guarded(const std::vector<T>& values, GuardPage guard) : count_(values.size()) {
    const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t bytes = count_ * sizeof(T), size = (bytes + kMargin + page - 1) / page * page;
    mapped_ = size + 2 * page;
    base_ = static_cast<uint8_t*>(
        mmap(nullptr, mapped_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (base_ == MAP_FAILED || mprotect(base_ + page, size, PROT_READ | PROT_WRITE) != 0) {
      throw std::runtime_error("cannot map memory between guard pages");
    }
    std::fill_n(base_ + page, size, kUnused);
    begin_ = base_ + page, end_ = begin_ + size;
    data_ = reinterpret_cast<T*>(guard == GuardPage::kBefore ? begin_ : end_ - bytes);
    std::copy(values.begin(), values.end(), data_);
  }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;
  ~Guarded() {
    const auto unused = [](uint8_t byte) { return byte == kUnused; };
    EXPECT_TRUE(std::all_of(begin_, reinterpret_cast<uint8_t*>(data_), unused));
    EXPECT_TRUE(std::all_of(reinterpret_cast<uint8_t*>(data_ + count_), end_, unused));
    munmap(base_, mapped_);
  }

  T* data() const { return data_; }
  operator T*() const { return data_; }
  std::vector<T> values() const { return {data_, data_ + count_}; }

 private:
  static constexpr size_t kMargin = 64;
  static constexpr uint8_t kUnused = 0xA5;
  size_t count_, mapped_;
  uint8_t *base_, *begin_, *end_;
  T* data_;
};

inline std::vector<double> in_double(const std::vector<float>& x) { return {x.begin(), x.end()}; }
inline std::vector<double> in_double(const std::vector<double>& x) { return x; }

/// Expects each element to be within `epsilons` machine epsilons, relative to max(1, |expected|).
template <class T>
void expect_close(const char* name, const Guarded<T>& got, const std::vector<double>& expected,
                  double epsilons) {
  const std::vector<T> values = got.values();
  ASSERT_EQ(values.size(), expected.size()) << name;
  for (size_t i = 0; i < values.size(); ++i) {
    const double allowed = epsilons * static_cast<double>(std::numeric_limits<T>::epsilon()) *
                           std::max(1.0, std::abs(expected[i]));
    ASSERT_NEAR(values[i], expected[i], allowed) << name << " at " << i;
  }
}

/// Runs `check(table, guard)` for every supported instruction set and both guard pages.
template <class Check>
void on_every_isa(const Check& check) {
  for (const KernelTable* table : supported_kernels()) {
    for (const GuardPage guard : {GuardPage::kBefore, GuardPage::kAfter}) {
      SCOPED_TRACE(std::string(table->name) + (guard == GuardPage::kBefore ? ", page before" : ""));
      check(*table, guard);
      if (::testing::Test::HasFatalFailure()) return;
    }
  }
}

template <class T>
class OnBothDtypes : public ::testing::Test {};
using Dtypes = ::testing::Types<float, double>;

}  // namespace flash::testing
