#pragma once
// Philox4x32-10, a counter-based random number generator: the bits are a function of (key, counter)
// alone, so a mask made in the forward can be made again in the backward, in any order and tiling.
//
// Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011, section 3.3.
//
// Internal linkage on purpose: files for different instruction sets include this, and a shared
// inline copy compiled for one of them could be the one that the linker keeps for all.

#include <cstdint>

namespace flash {
namespace {

struct PhiloxKey {
  uint32_t word[2];
};

inline PhiloxKey philox_key(uint64_t seed) {
  return {{static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)}};
}

/// Ten rounds over `kLanes` counters at once; counter[w][lane] is replaced by four random words.
/// Written as loops over lanes so that the compiler vectorises each round.
template <int kLanes>
inline void philox(PhiloxKey key, uint32_t (&counter)[4][kLanes]) {
  constexpr uint32_t kMultiplier[2] = {0xD2511F53u, 0xCD9E8D57u};
  constexpr uint32_t kWeyl[2] = {0x9E3779B9u, 0xBB67AE85u};
  for (int round = 0; round < 10; ++round) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const uint64_t product0 = static_cast<uint64_t>(kMultiplier[0]) * counter[0][lane];
      const uint64_t product1 = static_cast<uint64_t>(kMultiplier[1]) * counter[2][lane];
      const uint32_t next0 = static_cast<uint32_t>(product1 >> 32) ^ counter[1][lane] ^ key.word[0];
      const uint32_t next2 = static_cast<uint32_t>(product0 >> 32) ^ counter[3][lane] ^ key.word[1];
      counter[0][lane] = next0;
      counter[1][lane] = static_cast<uint32_t>(product1);
      counter[2][lane] = next2;
      counter[3][lane] = static_cast<uint32_t>(product0);
    }
    key.word[0] += kWeyl[0];
    key.word[1] += kWeyl[1];
  }
}

/// Random words for the weights of queries `first_query + lane` and keys 4 * key_group … + 3 of one
/// (batch, head): word[r][lane] belongs to key 4 * key_group + r. This is where the counter is laid
/// out; the mask depends on nothing else.
template <int kLanes>
inline void dropout_words(PhiloxKey key, int64_t batch_head, int64_t first_query, int64_t key_group,
                          uint32_t (&word)[4][kLanes]) {
  for (int lane = 0; lane < kLanes; ++lane) {
    word[0][lane] = static_cast<uint32_t>(key_group);
    word[1][lane] = static_cast<uint32_t>(first_query + lane);
    word[2][lane] = static_cast<uint32_t>(batch_head);
    word[3][lane] = static_cast<uint32_t>(batch_head >> 32);
  }
  philox(key, word);
}

/// A weight is kept if its word is at least this. At dropout = 1 one weight in 2^32 passes, and is
/// multiplied by `dropout_keep_scale` = 0.
inline uint32_t dropout_threshold(double dropout) {
  const double threshold = dropout * 4294967296.0;
  return threshold >= 4294967295.0 ? 4294967295u : static_cast<uint32_t>(threshold);
}

inline double dropout_keep_scale(double dropout) {
  return dropout < 1.0 ? 1.0 / (1.0 - dropout) : 0.0;
}

}  // namespace
}  // namespace flash
