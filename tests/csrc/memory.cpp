#include "tests/csrc/memory.h"

#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <stdexcept>
#include <string>

namespace flash::testing {
namespace {

constexpr int64_t kSlots = 32;
constexpr int64_t kSlotBytes = int64_t{8} << 20;

char description[512];
const char* names[kSlots];

/// Slots of accessible pages with guard pages before, between and after them. Mapped once for the
/// whole run; pages are committed when they are first touched.
class Slots {
 public:
  static Slots& get() {
    static Slots slots;
    return slots;
  }

  uint8_t* slot(int64_t i) const { return base_ + page_ + i * (kSlotBytes + page_); }

 private:
  Slots() : page_(sysconf(_SC_PAGESIZE)) {
    const auto total = static_cast<size_t>(page_ + kSlots * (kSlotBytes + page_));
    void* base =
        mmap(nullptr, total, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) throw std::runtime_error("mmap of guarded memory failed");
    base_ = static_cast<uint8_t*>(base);
    for (int64_t i = 0; i < kSlots; ++i) {
      if (mprotect(slot(i), kSlotBytes, PROT_READ | PROT_WRITE) != 0) {
        throw std::runtime_error("mprotect of guarded memory failed");
      }
    }
    struct sigaction action = {};
    action.sa_sigaction = report;
    action.sa_flags = SA_SIGINFO | SA_RESETHAND;
    sigaction(SIGSEGV, &action, &before_);
  }

  // Prints what was touched, and restores the previous handler, so that the instruction faults
  // again.
  static void report(int, siginfo_t* info, void*) {
    const Slots& slots = get();
    const auto offset = static_cast<uint8_t*>(info->si_addr) - slots.base_;
    const int64_t slot = offset / (kSlotBytes + slots.page_);
    if (offset >= 0 && slot <= kSlots) {
      char text[1024];
      const char* before = slot > 0 ? names[slot - 1] : "nothing";
      const char* after = slot < kSlots && names[slot] != nullptr ? names[slot] : "nothing";
      const int length =
          std::snprintf(text, sizeof(text), "\ntouched the guard page after %s and before %s: %s\n",
                        before == nullptr ? "nothing" : before, after, description);
      if (length > 0) (void)!write(STDERR_FILENO, text, static_cast<size_t>(length));
    }
    sigaction(SIGSEGV, &slots.before_, nullptr);
  }

  const int64_t page_;
  uint8_t* base_;
  struct sigaction before_;
};

}  // namespace

Memory::Memory(Place place) : place_(place) {
  for (const char*& name : names) name = nullptr;
}

void* Memory::bytes(const char* name, int64_t bytes) { return allocate(name, bytes, 1); }
void* Memory::aligned_bytes(const char* name, int64_t bytes) { return allocate(name, bytes, 64); }

void* Memory::allocate(const char* name, int64_t bytes, int64_t alignment) {
  void* data;
  if (place_ == Place::kHeap) {
    data = ::operator new(bytes, std::align_val_t(64));
    heap_.emplace_back(data);
  } else {
    if (used_ == kSlots || bytes > kSlotBytes) {
      throw std::length_error("expected at most " + std::to_string(kSlots) +
                              " guarded arrays of at most " + std::to_string(kSlotBytes) +
                              " bytes, got one more, of " + std::to_string(bytes));
    }
    names[used_] = name;
    uint8_t* const begin = Slots::get().slot(used_++);
    const int64_t at =
        place_ == Place::kAfterGuard ? 0 : (kSlotBytes - bytes) / alignment * alignment;
    data = begin + at;
  }
  std::memset(data, fill(), bytes);
  return data;
}

void describe_guarded_call(const char* text) {
  std::snprintf(description, sizeof(description), "%s", text);
}

}  // namespace flash::testing
