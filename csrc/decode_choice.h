#pragma once
// Decode: one or a few queries against a long KV cache. The two decisions about it: which kernel
// computes it (generic/decode.h), and whether its keys are split among threads (ops/split_kv.h).
//
// Internal linkage, as philox.h explains.

#include <cstdint>

#include "csrc/params.h"

namespace flash {
namespace {

/// Keys per step of the decode kernel. A step reads all of its keys and then all of its values. It
/// is long, so that the hardware prefetchers rarely switch between the two. Also the keys per part
/// of split keys, so that a part is one step.
constexpr int64_t kDecodeKeys = 1024;

/// Whether the decode kernel computes the call, with vectors of `lanes` elements, blocks of `block`
/// keys and dot products of at most `widest` elements. One dot product per score is faster than a
/// tile if half of the lanes or more would be idle. Dropout is left to the tiles, because its
/// random words are generated for lanes of queries. Short key sequences are left to them, too:
/// their sums have the order of the backward, so that the recomputed weight of a single key is
/// exactly 1.
constexpr bool takes_decode_kernel(const ForwardParams& p, int64_t lanes, int64_t block,
                                   int64_t widest) {
  return lanes > 1 && p.shape.queries <= lanes / 2 && p.shape.keys >= block &&
         p.score.dropout == 0 && p.shape.head_dim <= widest;
}

/// Whether ops/ splits the keys into parts of kDecodeKeys. The answer depends on the lengths alone,
/// not on the instruction set, the number of threads or the batch size, so that the bits of the
/// result do not depend on these either.
constexpr bool splits_keys(const ForwardParams& p) {
  constexpr int64_t kMostQueries = 8;
  const Shape& s = p.shape;
  return s.queries > 0 && s.queries <= kMostQueries && s.keys >= 2 * kDecodeKeys &&
         p.score.dropout == 0 && s.batch > 0 && s.heads > 0;
}

}  // namespace
}  // namespace flash
