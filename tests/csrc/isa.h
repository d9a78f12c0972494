#pragma once
// The instruction sets that this CPU supports, for tests that run on each of them.

#include <random>
#include <string_view>
#include <vector>

#include "csrc/dispatch.h"

namespace flash::testing {

/// Whether a table computes bfloat16 in products of bfloat16. In all else it is one of the other
/// tables.
inline bool has_tiles(const KernelTable& table) {
  const std::string_view name = table.name;
  return name.starts_with("amx") || name == "avx512-bf16";
}

inline std::vector<const KernelTable*> supported_kernels(bool tiles = false) {
  std::vector<const KernelTable*> tables;
  for (const KernelTable* table : all_kernels()) {
    if (table->supported() && has_tiles(*table) == tiles) tables.push_back(table);
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
