#pragma once
// Memory for the arrays of one kernel call: on the heap with the exact size, so that a sanitizer
// detects an access past its end, or in pages of its own between two guard pages.

#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

namespace flash::testing {

/// kAfterGuard: an array begins right after a guard page. kBeforeGuard: it ends right before one.
enum class Place { kHeap, kAfterGuard, kBeforeGuard };

/// Owns the arrays it returns. Only one object at a time may use guarded memory.
class Memory {
 public:
  explicit Memory(Place place = Place::kHeap);

  /// Returns `bytes` bytes, each set to fill(), so that uninitialized elements are NaN in one place
  /// and finite in another. `name` is printed if a guard page next to it is touched. Aligned to 64
  /// bytes, but before a guard page only to what divides `bytes`.
  void* bytes(const char* name, int64_t bytes);

  template <class T>
  T* array(const char* name, int64_t count) {
    return static_cast<T*>(bytes(name, count * static_cast<int64_t>(sizeof(T))));
  }

  template <class T>
  T* copy(const char* name, const std::vector<T>& values) {
    T* to = array<T>(name, static_cast<int64_t>(values.size()));
    if (!values.empty()) std::memcpy(to, values.data(), values.size() * sizeof(T));
    return to;
  }

  uint8_t fill() const { return place_ == Place::kBeforeGuard ? 0x3F : 0xFF; }

  /// `bytes` with 64-byte alignment in every place. Up to 63 bytes before a guard page are unused.
  void* aligned_bytes(const char* name, int64_t bytes);

 private:
  struct Free {
    void operator()(void* p) const { ::operator delete(p, std::align_val_t(64)); }
  };

  void* allocate(const char* name, int64_t bytes, int64_t alignment);

  const Place place_;
  int used_ = 0;  // guarded slots in use
  std::vector<std::unique_ptr<void, Free>> heap_;
};

/// Sets the text that is printed if guarded memory is touched, besides the name of the array.
void describe_guarded_call(const char* text);

}  // namespace flash::testing
