#pragma once
// The instruction sets that this CPU supports, for tests that run on each of them.

#include <random>
#include <vector>

#include "csrc/dispatch.h"

namespace flash::testing {

/// Those that compute bfloat16 in products of bfloat16, or the others.
inline std::vector<const KernelTable*> supported_kernels(bool tiles = false) {
  std::vector<const KernelTable*> tables;
  for (const KernelTable* table : all_kernels()) {
    if (table->supported() && (table->bfloat16_products != BFloat16Products::kNone) == tiles)
      tables.push_back(table);
  }
  return tables;
}

template <class T>
const TypedKernels& typed(const KernelTable& table) {
  if constexpr (sizeof(T) == 4) {
    return table.f32;
  } else {
    return table.f64;
  }
}

/// Values from a standard normal distribution.
template <class T>
std::vector<T> normal(int64_t size, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<double> distribution;
  std::vector<T> x(size);
  for (T& value : x) value = static_cast<T>(distribution(random));
  return x;
}

}  // namespace flash::testing
