#pragma once

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace flash {
namespace {

/// Whether the CPU has tiles of bfloat16 and the kernel lets this process use them. Linux grants
/// the permission on request (arch_prctl(2), ARCH_REQ_XCOMP_PERM), for all threads and children.
inline bool supports_amx() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  constexpr unsigned kBFloat16 = 1u << 22, kTile = 1u << 24;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) return false;
  if ((edx & kBFloat16) == 0 || (edx & kTile) == 0) return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

}  // namespace
}  // namespace flash
