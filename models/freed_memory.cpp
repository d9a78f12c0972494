#include "freed_memory.h"

#include <ATen/ops/empty.h>

namespace flash::models {

void keep_freed_memory() {
  // glibc maps requests of 128 KiB and more one by one, and cuts its heap when 128 KiB are free at
  // the top, until a program frees a larger mapping. Then it takes the size of that as a limit, up
  // to 32 MiB, and twice that for the heap: mallopt(3), M_MMAP_THRESHOLD. Environment variables
  // that set the limits still do, and other allocators are not affected.
  constexpr int64_t kBytes = int64_t{31} << 20;
  [[maybe_unused]] static const bool once = [] {
    at::empty({kBytes}, at::kByte);
    return true;
  }();
}

}  // namespace flash::models
