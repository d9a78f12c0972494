#pragma once
// Philox4x32-10, a counter-based random number generator: its bits depend only on (key, counter),
// so the backward can regenerate the mask of the forward, in any order and tiling.
//
// Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011, section 3.3.
//
// Internal linkage on purpose: files for several instruction sets include this header, and an
// inline function compiled for one of them could be the copy that the linker keeps for all.

#include <cstdint>

namespace flash {
namespace {

struct PhiloxKey {
  uint32_t word[2];
};

inline PhiloxKey philox_key(uint64_t seed) {
  return {{static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)}};
}

/// A register of kWidth Philox counters: 32-bit integers, each in the low half of 64 bits, so that
/// a product fits. The high halves are ignored. This is the scalar version; instruction sets define
/// theirs in vec.h.
struct ScalarCounters {
  using Reg = uint64_t;
  static constexpr int kWidth = 1;
  static Reg broadcast(uint32_t x) { return x; }
  static Reg sequence(uint32_t first) { return first; }  // first, first + 1, …
  static Reg product(Reg a, Reg b) { return (a & 0xffffffffu) * (b & 0xffffffffu); }
  static Reg high_half(Reg x) { return x >> 32; }
  static Reg exclusive_or(Reg a, Reg b) { return a ^ b; }
  static void store(uint32_t* p, Reg x) { *p = static_cast<uint32_t>(x); }
  static void store_alternating(uint32_t* p, Reg even, Reg odd) {
    store(p, even);
    store(p + 1, odd);
  }
};

/// Ten rounds; replaces the four words of each counter by random words. kInterleave registers are
/// processed together, to hide the latency of a round, some seven cycles.
template <class C, int kInterleave>
inline void philox(PhiloxKey key, typename C::Reg (&counter)[kInterleave][4]) {
  using Reg = typename C::Reg;
  const Reg multiplier[2] = {C::broadcast(0xD2511F53u), C::broadcast(0xCD9E8D57u)};
  constexpr uint32_t kWeyl[2] = {0x9E3779B9u, 0xBB67AE85u};
#pragma GCC unroll 10
  for (int round = 0; round < 10; ++round) {
    const Reg key0 = C::broadcast(key.word[0]), key1 = C::broadcast(key.word[1]);
#pragma GCC unroll 3
    for (int i = 0; i < kInterleave; ++i) {
      Reg(&c)[4] = counter[i];
      const Reg product0 = C::product(c[0], multiplier[0]);
      const Reg product1 = C::product(c[2], multiplier[1]);
      c[0] = C::exclusive_or(C::high_half(product1), C::exclusive_or(c[1], key0));
      c[2] = C::exclusive_or(C::high_half(product0), C::exclusive_or(c[3], key1));
      c[1] = product1;
      c[3] = product0;
    }
    key.word[0] += kWeyl[0];
    key.word[1] += kWeyl[1];
  }
}

/// Random words for the weights of queries `first_query + lane` and keys 4 * key_group … + 3 of one
/// (batch, head): word[r][lane] belongs to key 4 * key_group + r. This defines the counter; the
/// mask depends on nothing else.
template <class C, int kLanes>
inline void dropout_words(PhiloxKey key, int64_t batch_head, int64_t first_query, int64_t key_group,
                          uint32_t (&word)[4][kLanes]) {
  constexpr int kRegs = kLanes / C::kWidth;
  static_assert(kLanes % C::kWidth == 0);
  constexpr int kInterleave = kRegs % 2 == 0 ? 2 : kRegs % 3 == 0 ? 3 : 1;
  for (int lane = 0; lane < kLanes; lane += kInterleave * C::kWidth) {
    typename C::Reg counter[kInterleave][4];
#pragma GCC unroll 3
    for (int i = 0; i < kInterleave; ++i) {
      counter[i][0] = C::broadcast(static_cast<uint32_t>(key_group));
      counter[i][1] = C::sequence(static_cast<uint32_t>(first_query + lane + i * C::kWidth));
      counter[i][2] = C::broadcast(static_cast<uint32_t>(batch_head));
      counter[i][3] = C::broadcast(static_cast<uint32_t>(batch_head >> 32));
    }
    philox<C, kInterleave>(key, counter);
#pragma GCC unroll 3
    for (int i = 0; i < kInterleave; ++i) {
#pragma GCC unroll 4
      for (int r = 0; r < 4; ++r) C::store(&word[r][lane + i * C::kWidth], counter[i][r]);
    }
  }
}

/// Random words for elements 64 * block … + 63 of a flat array: sixteen counters of four words
/// each. Words 0 and 1 of counter n belong to elements 2 n and 2 n + 1, words 2 and 3 to 32 + 2 n
/// and 33 + 2 n. With this order, words stay in their lanes for any register width.
template <class C>
inline void element_words(PhiloxKey key, uint64_t block, uint32_t (&word)[64]) {
  constexpr int kCounters = 16, kInterleave = 2;
  const uint64_t first = block * kCounters;
  for (int n = 0; n < kCounters; n += kInterleave * C::kWidth) {
    typename C::Reg counter[kInterleave][4];
#pragma GCC unroll 2
    for (int i = 0; i < kInterleave; ++i) {
      counter[i][0] = C::sequence(static_cast<uint32_t>(first) + n + i * C::kWidth);
      counter[i][1] = C::broadcast(static_cast<uint32_t>(first >> 32));
      counter[i][2] = C::broadcast(0);
      // Distinct from the counters of attention weights, which have the high half of batch_head
      // here.
      counter[i][3] = C::broadcast(0xffffffffu);
    }
    philox<C, kInterleave>(key, counter);
#pragma GCC unroll 2
    for (int i = 0; i < kInterleave; ++i) {
      const int at = 2 * (n + i * C::kWidth);
      C::store_alternating(&word[at], counter[i][0], counter[i][1]);
      C::store_alternating(&word[32 + at], counter[i][2], counter[i][3]);
    }
  }
}

/// A weight is kept if its word is at least this threshold. With dropout = 1, one weight in 2^32 is
/// kept, but dropout_keep_scale() is 0.
inline uint32_t dropout_threshold(double dropout) {
  const double threshold = dropout * 4294967296.0;
  return threshold >= 4294967295.0 ? 4294967295u : static_cast<uint32_t>(threshold);
}

inline double dropout_keep_scale(double dropout) {
  return dropout < 1.0 ? 1.0 / (1.0 - dropout) : 0.0;
}

}  // namespace
}  // namespace flash
