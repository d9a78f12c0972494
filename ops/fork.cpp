// fork(): OpenMP's threads exist in the parent only, but the child inherits OpenMP's record of
// them, and its first parallel region, here or in an operator of torch, would wait for them
// forever. So they are released before each fork. Parent and child start new ones when they next
// need them, which takes tens of microseconds.

#include <omp.h>
#include <pthread.h>
#include <sys/single_threaded.h>

#include <fstream>
#include <sstream>
#include <string>

namespace flash {
namespace {

/// Whether this process was forked and has not called exec since: then it may have a record of
/// threads of its parent, forked before this library could release them.
bool forked_without_exec() {
  std::ifstream file("/proc/self/stat");
  std::string text;
  std::getline(file, text);
  // After the name, which is in parentheses: state, parent, group, session, terminal, its group,
  // flags.
  const size_t name_end = text.rfind(')');
  if (name_end == std::string::npos) return false;
  std::string field;
  unsigned long flags = 0;
  std::istringstream fields(text.substr(name_end + 1));
  for (int i = 0; i < 6; ++i) fields >> field;
  fields >> flags;
  constexpr unsigned long kForkedNoExec = 0x40;  // PF_FORKNOEXEC of linux/sched.h
  return (flags & kForkedNoExec) != 0;
}

const bool may_have_lost_threads = forked_without_exec();

void release_threads() {
  if (__libc_single_threaded) return;
  // Releasing threads that do not exist would wait for them, too. A process that is limited to one
  // thread, as DataLoader's workers are, need not release any.
  if (may_have_lost_threads && omp_get_max_threads() == 1) return;
  omp_pause_resource_all(omp_pause_soft);
}

// Fails only for lack of memory, and then fork() behaves as without it.
[[maybe_unused]] const int registered = pthread_atfork(release_threads, nullptr, nullptr);

}  // namespace
}  // namespace flash
