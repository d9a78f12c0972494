// flash::dropout_mask: the mask as the kernels draw it.

#include "ops/dropout_mask.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/Parallel.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <flash_attention/ops.h>
#include <torch/library.h>

#include "csrc/philox.h"
#include "ops/attention_checks.h"

namespace flash {

int64_t draw_seed() {
  auto* generator = at::get_generator_or_default<at::CPUGeneratorImpl>(
      std::nullopt, at::detail::getDefaultCPUGenerator());
  const std::lock_guard<std::mutex> lock(generator->mutex_);
  return static_cast<int64_t>(generator->random64());
}

at::Tensor dropout_mask_from_seed(int64_t batch, int64_t heads, int64_t first, int64_t queries,
                                  int64_t keys, double dropout, int64_t seed) {
  // Bypasses the dispatcher, which would wrap the mask inside a functorch transform.
  at::Tensor mask = at::detail::empty_cpu({batch, heads, queries, keys}, at::kBool);
  if (mask.numel() == 0) return mask;  // the number of rows may be huge then
  bool* kept = mask.mutable_data_ptr<bool>();
  const PhiloxKey key = philox_key(static_cast<uint64_t>(seed));
  const uint32_t threshold = dropout_threshold(dropout);
  at::parallel_for(0, batch * heads * queries, 64, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t j = 0; j < keys; j += 4) {
        uint32_t word[4][1];
        dropout_words<ScalarCounters, 1>(key, row / queries, first + row % queries, j / 4, word);
        for (int64_t r = 0; r < 4 && j + r < keys; ++r) {
          kept[row * keys + j + r] = dropout < 1.0 && word[r][0] >= threshold;
        }
      }
    }
  });
  return mask;
}

namespace {

at::Tensor draw_dropout_mask(int64_t batch, int64_t heads, int64_t queries, int64_t keys,
                             double dropout) {
  TORCH_CHECK_VALUE(batch >= 0 && heads >= 0 && queries >= 0 && keys >= 0,
                    "flash::dropout_mask: expected sizes of at least 0, got batch ", batch,
                    ", heads ", heads, ", queries ", queries, ", keys ", keys);
  check_dropout(dropout);
  // Like attention without dropout, this leaves the generator alone.
  if (dropout == 0) return at::ones({batch, heads, queries, keys}, at::kBool);
  return dropout_mask_from_seed(batch, heads, /*first=*/0, queries, keys, dropout, draw_seed());
}

}  // namespace

at::Tensor dropout_mask(int64_t batch, int64_t heads, int64_t queries, int64_t keys,
                        double dropout) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("flash::dropout_mask", "")
                             .typed<decltype(dropout_mask)>();
  return op.call(batch, heads, queries, keys, dropout);
}

}  // namespace flash

TORCH_LIBRARY_FRAGMENT(flash, m) {
  m.def("dropout_mask(int batch, int heads, int queries, int keys, float dropout) -> Tensor",
        {at::Tag::nondeterministic_seeded});
  // Explicit, not implicit: it reads and writes memory directly, so a tracer must not decompose it.
  m.impl("dropout_mask",
         torch::dispatch(c10::DispatchKey::CompositeExplicitAutograd, flash::draw_dropout_mask));
}
