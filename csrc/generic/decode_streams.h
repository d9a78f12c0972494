#pragma once
// The order in which decoding reads keys and values.

#include <cstdint>
#include <type_traits>

#include "csrc/storage.h"

namespace flash {
namespace {

/// Bytes that are read from one of two streams before the other continues. One core reads two
/// streams from DRAM, half a step apart, up to a fifth faster than one, because hardware
/// prefetchers follow both. Pieces of 4 KiB gain half as much.
constexpr int64_t kStreamPiece = 2048;

/// The number of streams in which a step is read, for rows of `bytes` bytes. Shorter rows are
/// faster in one.
constexpr int streams_of(int64_t bytes) { return bytes >= 256 ? 2 : 1; }

/// Rows of a piece: a power of two.
constexpr int64_t rows_of_piece(int64_t bytes) {
  int64_t rows = 1;
  while (2 * rows * bytes <= kStreamPiece) rows *= 2;
  return rows;
}

/// Whether 2 * kWidth elements are loaded at once, those at even positions before those at odd
/// ones.
template <class Stored>
constexpr bool kLoadsPairs = std::is_same_v<Stored, BFloat16>;

}  // namespace
}  // namespace flash
