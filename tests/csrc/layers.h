#pragma once
// What the tests of layer kernels share: sizes around every vector width, memory that ends at a
// page nobody may touch, and comparison with a reference in double.

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

/// One less than, equal to and one more than each vector of 4, 8 and 16 lanes, pairs of those, and
/// groups of several.
inline const std::vector<int64_t> kWidths = {0,  1,  2,  3,  4,  5,  7,  8,  9,   15,  16,
                                             17, 31, 32, 33, 63, 64, 65, 96, 127, 130, 200};

/// Which end of the memory lies at an unreadable page. The other end is followed, or preceded, by
/// bytes that must stay as they are.
enum class Fence { kBefore, kBehind };

template <class T>
class Fenced {
 public:
  Fenced(const std::vector<T>& values, Fence fence) : count_(values.size()) {
    const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t bytes = count_ * sizeof(T), room = (bytes + kMargin + page - 1) / page * page;
    mapped_ = room + 2 * page;
    base_ = static_cast<uint8_t*>(
        mmap(nullptr, mapped_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (base_ == MAP_FAILED || mprotect(base_ + page, room, PROT_READ | PROT_WRITE) != 0) {
      throw std::runtime_error("no memory between guard pages");
    }
    std::fill_n(base_ + page, room, kUnused);
    begin_ = base_ + page, end_ = begin_ + room;
    data_ = reinterpret_cast<T*>(fence == Fence::kBefore ? begin_ : end_ - bytes);
    std::copy(values.begin(), values.end(), data_);
  }
  Fenced(const Fenced&) = delete;
  Fenced& operator=(const Fenced&) = delete;
  ~Fenced() {
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

/// Each element within `epsilons` machine epsilons of what is expected, relative to the larger of 1
/// and that.
template <class T>
void expect_close(const char* name, const Fenced<T>& got, const std::vector<double>& expected,
                  double epsilons) {
  const std::vector<T> values = got.values();
  ASSERT_EQ(values.size(), expected.size()) << name;
  for (size_t i = 0; i < values.size(); ++i) {
    const double allowed = epsilons * static_cast<double>(std::numeric_limits<T>::epsilon()) *
                           std::max(1.0, std::abs(expected[i]));
    ASSERT_NEAR(values[i], expected[i], allowed) << name << " at " << i;
  }
}

/// Runs `check(table, fence)` on every instruction set that this CPU has, with either fence.
template <class Check>
void on_every_isa(const Check& check) {
  for (const KernelTable* table : supported_kernels()) {
    for (const Fence fence : {Fence::kBefore, Fence::kBehind}) {
      SCOPED_TRACE(std::string(table->name) + (fence == Fence::kBefore ? ", page before" : ""));
      check(*table, fence);
      if (::testing::Test::HasFatalFailure()) return;
    }
  }
}

template <class T>
class OnBothDtypes : public ::testing::Test {};
using Dtypes = ::testing::Types<float, double>;

}  // namespace flash::testing
