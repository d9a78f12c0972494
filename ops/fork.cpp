// A process that forks: the threads of OpenMP stay with the parent. The child inherits the record
// of them, and its first parallel region would wait for them for good, here or in an operator of
// torch. So they are let go before each fork. Parent and child start new ones when they next need
// some, which costs tens of microseconds.

#include <omp.h>
#include <pthread.h>
#include <sys/single_threaded.h>

namespace flash {
namespace {

void release_threads() {
  // Alone, or told to stay alone, the thread that forks has none to let go.
  if (__libc_single_threaded || omp_get_max_threads() == 1) return;
  omp_pause_resource_all(omp_pause_soft);
}

// Fails for lack of memory only, and then forks are what they are without it.
[[maybe_unused]] const int registered = pthread_atfork(release_threads, nullptr, nullptr);

}  // namespace
}  // namespace flash
