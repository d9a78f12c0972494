#pragma once

#include <cstddef>
#include <cstdint>

namespace flash::models {

/// The hash FNV-1a of the bytes added so far, for comparisons, not against forgery.
class Fnv1a {
 public:
  void add(const void* memory, size_t count) {
    const auto* bytes = static_cast<const unsigned char*>(memory);
    for (size_t i = 0; i < count; ++i) value_ = (value_ ^ bytes[i]) * 0x100000001b3;
  }
  uint64_t value() const { return value_; }

 private:
  uint64_t value_ = 0xcbf29ce484222325;
};

}  // namespace flash::models
