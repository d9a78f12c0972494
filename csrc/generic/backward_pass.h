#pragma once
// The backward of a whole problem: its work plan and the loop over units.

#include <cstdint>

#include "csrc/generic/backward.h"
#include "csrc/generic/partition.h"
#include "csrc/kernels.h"

namespace flash {
namespace {

template <class V>
Partition partition(const BackwardParams& p) {
  // Queries are packed once per chunk of keys: in chunks of 96, that takes 2% of the time or more.
  constexpr int64_t kMinQueries = 192;
  return Partition(p, V::kWidth, max_of(kMinQueries, BackwardScratch<V>::kQueries));
}

template <class V>
WorkPlan backward_plan(const BackwardParams& p) {
  const Partition parts = partition<V>(p);
  const Shape& s = p.shape;
  const int64_t scores = s.batch * s.heads * s.queries * most_attended(p.score, s.keys);
  const int64_t pieces = max_of(1, parts.units() * parts.steps());
  return {parts.units(), parts.steps(), scores / pieces * (6 * s.head_dim + 4 * s.value_dim + 16)};
}

template <class V>
int64_t backward_scratch_bytes(const BackwardParams& p) {
  return round_up(BackwardScratch<V>(p, nullptr).bytes, 64);
}

/// The gradients of the ALiBi slopes, one element per row, before the sum over queries.
inline MutableRows slope_rows(const BackwardParams& p) {
  return {p.grad_slope_rows, {p.shape.heads * p.shape.queries, p.shape.queries, 1}};
}

/// Splits the queries of a unit into blocks of about equal size. All blocks but the last are whole
/// tiles. A small block would read and write full rows of dK and dV for little work.
template <class V>
int64_t queries_per_block(Range queries) {
  const int64_t count = max_of(1, queries.end - queries.begin);
  const int64_t blocks = ceil_div(count, BackwardScratch<V>::kQueries);
  return round_up(ceil_div(count, blocks), QueryTiles<V>::kMaxLanes);
}

/// Whether any of the queries may attend any of the keys. Packing a block only to find that none
/// does would cost as much as the work of a narrow window.
inline bool may_attend(const BackwardParams& p, Range queries, Range keys) {
  if (queries.empty() || keys.empty()) return false;
  if (p.score.positions != nullptr) return true;  // BackwardBlock finds out
  const int64_t left = p.score.window_left, right = p.score.window_right;
  const int64_t first = queries.begin + p.shape.keys - p.shape.queries;
  const int64_t last = queries.end - 1 + p.shape.keys - p.shape.queries;
  return (left < 0 || saturated_sum(first, -left) < keys.end) &&
         (right < 0 || saturated_sum(last, right) >= keys.begin);
}

/// Calls run_block(batch, head, queries, keys, stores) for the blocks of units unit_begin …
/// unit_end - 1. Step 0 pairs each query chunk with its own key chunk, so it reaches every row, and
/// the first block to reach one stores it. Blocks run backwards, because the last queries attend
/// all keys if the attention is causal.
template <class V, class RunBlock>
void backward_units(const BackwardParams& p, int64_t step, int64_t unit_begin, int64_t unit_end,
                    RunBlock&& run_block) {
  using T = typename V::Scalar;
  const Partition parts = partition<V>(p);
  const Shape& shape = p.shape;
  for (int64_t unit = unit_begin; unit < unit_end; ++unit) {
    const Range batches = parts.batches(unit);
    const Range heads = parts.heads(unit);
    const Range queries = parts.queries(unit);
    const Range keys = parts.keys(unit, step);
    const int64_t size = queries_per_block<V>(queries);
    for (int64_t batch = batches.begin; batch < batches.end; ++batch) {
      for (int64_t head = heads.begin; head < heads.end; ++head) {
        if (step == 0) clear_rows<T>(slope_rows(p), batch, head, queries, 1);
        Stores stores = {step == 0, step == 0 && head % (shape.heads / shape.key_heads) == 0,
                         step == 0 && head % (shape.heads / shape.value_heads) == 0};
        // A chunk without queries still has one block, which stores zeros for its keys.
        const int64_t blocks = max_of(1, ceil_div(queries.end - queries.begin, size));
        for (int64_t i = blocks - 1; i >= 0; --i) {
          const int64_t first = queries.begin + i * size;
          const Range block = {first, min_of(first + size, queries.end)};
          // A row that attends no key has a sink gradient, too.
          const bool has_sinks = step == 0 && p.grad_sink_rows != nullptr && !block.empty();
          if (has_sinks || may_attend(p, block, keys)) {
            run_block(batch, head, block, keys, stores);
          } else {
            clear_stored<T>(p, batch, head, block, keys, stores);
          }
          stores.key = stores.value = false;
        }
      }
    }
  }
}

template <class V>
void backward(const BackwardParams& p, int64_t step, int64_t unit_begin, int64_t unit_end,
              void* memory) {
  const BackwardScratch<V> scratch(p, memory);
  backward_units<V>(p, step, unit_begin, unit_end,
                    [&](int64_t batch, int64_t head, Range queries, Range keys, Stores stores) {
                      BackwardBlock<V>(p, scratch, batch, head, queries, stores).run(keys);
                    });
}

}  // namespace
}  // namespace flash
