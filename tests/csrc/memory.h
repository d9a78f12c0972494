#pragma once
// Memory for the arrays of one kernel call: on the heap, exactly as long as asked for, so that a
// sanitizer sees the byte behind it; or in pages of its own between two that cannot be touched.

#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

namespace flash::testing {

/// kAfterGuard: an array begins where an unreadable page ends. kBeforeGuard: it ends where one
/// begins.
enum class Place { kHeap, kAfterGuard, kBeforeGuard };

/// Arrays live as long as this does. One object at a time may hand out guarded memory.
class Memory {
 public:
  explicit Memory(Place place = Place::kHeap);

  /// `bytes` of memory, every one of them `fill()`: what no one has written is NaN in one place,
  /// and a number in another. `name` is what a fault beside it is reported with. 64-byte aligned
  /// but before a guard page, where it is aligned to what divides `bytes`.
  void* bytes(const char* name, int64_t bytes);

  template <class T>
  T* array(const char* name, int64_t count) {
    return static_cast<T*>(bytes(name, count * static_cast<int64_t>(sizeof(T))));
  }

  template <class T>
  T* copy(const char* name, const std::vector<T>& numbers) {
    T* to = array<T>(name, static_cast<int64_t>(numbers.size()));
    if (!numbers.empty()) std::memcpy(to, numbers.data(), numbers.size() * sizeof(T));
    return to;
  }

  uint8_t fill() const { return place_ == Place::kBeforeGuard ? 0x3F : 0xFF; }

  /// As `bytes`, 64-byte aligned in every place: up to 63 bytes before a guard page stay unused.
  void* aligned_bytes(const char* name, int64_t bytes);

 private:
  struct Free {
    void operator()(void* p) const { ::operator delete(p, std::align_val_t(64)); }
  };

  void* take(const char* name, int64_t bytes, int64_t alignment);

  const Place place_;
  int taken_ = 0;  // guarded slots in use
  std::vector<std::unique_ptr<void, Free>> heap_;
};

/// What a fault in guarded memory prints besides the name of the array.
void describe_guarded_call(const char* text);

}  // namespace flash::testing
