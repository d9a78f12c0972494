#pragma once
// The forward of a whole problem on tile registers: its work plan and the loop over units.

#include <cstdint>
#include <limits>

#include "csrc/generic/tile_forward.h"
#include "csrc/kernels.h"

namespace flash {
namespace {

inline WorkPlan tile_forward_plan(const ForwardParams& p) {
  const Shape& s = p.shape;
  return {s.batch * s.heads * tile_count(s), 1,
          kTileLanes * most_attended(p.score, s.keys) *
              ((s.head_dim + s.value_dim) * pairs_of(p) + 64) / 4};
}

inline int64_t tile_forward_scratch_bytes(const ForwardParams& p) {
  return TileForwardScratch(p, nullptr).bytes;
}

/// Processes units unit_begin … unit_end - 1, a group of tiles at a time. Tiles of a group share
/// only inputs, so results do not depend on the grouping.
template <class V, class M, int kParts>
void tile_forward(const ForwardParams& p, int64_t unit_begin, int64_t unit_end, void* memory) {
  const typename M::Session session;
  const TileForwardScratch scratch(p, memory);
  PackedBlock<V, kParts> block(p, scratch);
  const int64_t tiles = tile_count(p.shape);
  TileForward<V, M, kParts> group[kMostTilesPerBlock];
  for (int64_t unit = unit_begin; unit < unit_end;) {
    const int64_t batch = unit / (tiles * p.shape.heads);
    const int64_t head = unit / tiles % p.shape.heads;
    const int64_t first_order = unit % tiles;
    const int64_t size =
        min_of(tiles_per_block(p.shape), min_of(unit_end - unit, tiles - first_order));
    // Alternates between both ends, as in forward.h.
    const auto begin_of = [&](int64_t slot) {
      const int64_t order = first_order + slot;
      return kTileLanes * (order % 2 == 0 ? order / 2 : tiles - 1 - order / 2);
    };
    const auto for_tiles = [&](auto&& f) {
      for (int64_t slot = 0; slot < size; ++slot) {
        const int64_t begin = begin_of(slot);
        const int64_t count = min_of(kTileLanes, p.shape.queries - begin);
        if (count > kTileRows) {
          f.template operator()<2>(slot, begin, count);
        } else {
          f.template operator()<1>(slot, begin, count);
        }
      }
    };
    block.start(batch, head);
    for_tiles([&]<int kHalves>(int64_t slot, int64_t begin, int64_t count) {
      group[slot].template start<kHalves>(p, batch, head, begin, count, scratch, block, slot);
    });
    constexpr int64_t kNone = std::numeric_limits<int64_t>::max();
    for (int64_t current = 0; current != kNone;) {
      int64_t next = kNone;
      for_tiles([&]<int kHalves>(int64_t slot, int64_t, int64_t) {
        if (!group[slot].has_keys()) return;
        if (group[slot].next_block() <= current) group[slot].template step<kHalves>();
        if (group[slot].has_keys()) next = min_of(next, group[slot].next_block());
      });
      current = next;
    }
    for_tiles([&]<int kHalves>(int64_t slot, int64_t, int64_t) {
      group[slot].template finish<kHalves>();
    });
    unit += size;
  }
}

}  // namespace
}  // namespace flash
