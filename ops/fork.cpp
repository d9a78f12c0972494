// A process that forks: the threads of OpenMP stay with the parent. The child inherits the record
// of them, and its first parallel region would wait for them for good, here or in an operator of
// torch. So they are let go before each fork. Parent and child start new ones when they next need
// some, which costs tens of microseconds.

#include <omp.h>
#include <pthread.h>
#include <sys/single_threaded.h>

#include <fstream>
#include <sstream>
#include <string>

namespace flash {
namespace {

/// Whether this process was forked from another one and has run no program since: then it may hold
/// a record of threads that stayed there, from before this library could let them go.
bool forked_without_exec() {
  std::ifstream file("/proc/self/stat");
  std::string text;
  std::getline(file, text);
  // Behind the name, in parentheses: state, parent, group, session, terminal, its group, flags.
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
  // To let go of threads that are not here would be to wait for them, too. Who has been told to
  // stay on one thread, as the workers of a DataLoader are, need not.
  if (may_have_lost_threads && omp_get_max_threads() == 1) return;
  omp_pause_resource_all(omp_pause_soft);
}

// Fails for lack of memory only, and then forks are what they are without it.
[[maybe_unused]] const int registered = pthread_atfork(release_threads, nullptr, nullptr);

}  // namespace
}  // namespace flash
