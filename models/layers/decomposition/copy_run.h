#pragma once
// Copies of the short runs of elements that a head owns in a spectrum.

#include <cstdint>
#include <cstring>

namespace flash::models {

/// Copies `count` elements, a cache line at a time: a call of memmove would take longer than the
/// copy.
template <class T>
inline void copy_run(const T* from, int64_t count, T* to) {
  constexpr int64_t kLine = 64 / sizeof(T);
  int64_t i = 0;
  for (; i + kLine <= count; i += kLine) std::memcpy(to + i, from + i, kLine * sizeof(T));
  for (; i < count; ++i) to[i] = from[i];
}

}  // namespace flash::models
