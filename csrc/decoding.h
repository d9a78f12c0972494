#pragma once
// Decoding: a call of one or a few queries against many keys, as a language model makes at each
// step. Two decisions about it, side by side: which kernel computes it (generic/decode.h), and
// whether its keys are split among the threads (ops/split_kv.h).
//
// Internal linkage, as philox.h explains.

#include <cstdint>

#include "csrc/params.h"

namespace flash {
namespace {

/// Keys per step of the decoding kernel, whose values are read once all of the keys have been: so
/// many that the prefetchers of a CPU rarely change from keys to values and back. Also the keys of
/// one part of split keys, so that a part is a step.
constexpr int64_t kDecodeKeys = 1024;

/// Whether the decoding kernel computes the call, with vectors of `lanes` elements, blocks of
/// `block` keys and dot products of at most `widest` elements.
///
/// A dot product for each score costs less than a tile of which half of the lanes are idle. There
/// is no dropout, whose random words come for lanes of queries. A few keys take no time either way:
/// they are summed in the order of the backward, so that the weight of an only key is 1 there, too.
constexpr bool takes_decode_kernel(const ForwardParams& p, int64_t lanes, int64_t block,
                                   int64_t widest) {
  return lanes > 1 && p.shape.queries <= lanes / 2 && p.shape.keys >= block &&
         p.score.dropout == 0 && p.shape.head_dim <= widest;
}

/// Whether ops/ splits the keys into parts of kDecodeKeys. The answer depends on the lengths alone,
/// neither on the instruction set nor on the number of threads nor on the batch, so that the bits
/// of the result do not depend on these through it.
constexpr bool splits_keys(const ForwardParams& p) {
  constexpr int64_t kMostQueries = 8;
  const Shape& s = p.shape;
  return s.queries > 0 && s.queries <= kMostQueries && s.keys >= 2 * kDecodeKeys &&
         p.score.dropout == 0 && s.batch > 0 && s.heads > 0;
}

}  // namespace
}  // namespace flash
