#pragma once
// The eight tile registers of Intel AMX: sixteen rows of 64 bytes each.
//
// Tiles are named by template arguments, because the instructions encode them. The assembler knows
// the instructions without a compiler flag; GCC 12's own intrinsics lack the memory clobbers that
// keep the stores to a buffer before the load of a tile from it.

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>

namespace flash {
namespace {

struct AmxTiles {
  /// Whether the CPU has tiles of bfloat16 and the kernel lets this process use them. Linux grants
  /// the permission on request (arch_prctl(2), ARCH_REQ_XCOMP_PERM), for all threads and children.
  static bool supported() {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    constexpr unsigned kBFloat16 = 1u << 22, kTile = 1u << 24;
    if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) return false;
    if ((edx & kBFloat16) == 0 || (edx & kTile) == 0) return false;
    constexpr long kRequestPermission = 0x1023, kTileData = 18;
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  }

  /// Configures all tiles for its lifetime and releases them afterwards, so that the operating
  /// system need not save them. Never kept across calls: another library may configure the tiles of
  /// this thread in between.
  class Session {
   public:
    Session() {
      struct alignas(64) Config {
        uint8_t palette = 1, start_row = 0, reserved[14] = {};
        uint16_t bytes_per_row[16] = {};
        uint8_t rows[16] = {};
      } config;
      for (int tile = 0; tile < 8; ++tile) {
        config.bytes_per_row[tile] = 64;
        config.rows[tile] = 16;
      }
      asm volatile("ldtilecfg %0" : : "m"(config));
    }
    ~Session() { asm volatile("tilerelease" : : : "memory"); }
    Session(const Session&) = delete;
    Session& operator=(const Session&) = delete;
  };

  template <int kTile>
  static void zero() {
    asm volatile("tilezero %%tmm%c0" : : "i"(kTile));
  }
  /// Rows are `stride` bytes apart.
  template <int kTile>
  static void load(const void* rows, int64_t stride) {
    asm volatile("tileloadd (%1,%2,1), %%tmm%c0" : : "i"(kTile), "r"(rows), "r"(stride) : "memory");
  }
  template <int kTile>
  static void store(void* rows, int64_t stride) {
    asm volatile("tilestored %%tmm%c0, (%1,%2,1)"
                 :
                 : "i"(kTile), "r"(rows), "r"(stride)
                 : "memory");
  }
  /// sum[m][n] += over k and i in {0, 1}, left[m][2 k + i] * right[k][2 n + i], of bfloat16.
  template <int kSum, int kLeft, int kRight>
  static void multiply_add() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSum), "i"(kLeft), "i"(kRight));
  }
};

}  // namespace
}  // namespace flash
