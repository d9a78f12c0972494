#include "layers/decomposition/fourier_modes.h"

#include <algorithm>
#include <bit>
#include <numeric>
#include <random>
#include <utility>

namespace flash::models {
namespace {

/// The decoder's blocks are built for this length whatever decoder_input_size_multiplier is.
int64_t decoder_length(int64_t h, int64_t input_size) { return input_size / 2 + h; }

/// numpy.random.shuffle of 0 ... count - 1: from the end, swaps each element with a random one up
/// to it. Draws are masked to the bits of the range and rejected if outside.
std::vector<int64_t> shuffled(int64_t count, std::mt19937& generator) {
  std::vector<int64_t> list(static_cast<size_t>(count));
  std::iota(list.begin(), list.end(), 0);
  for (auto last = static_cast<uint32_t>(count); last-- > 1;) {
    const uint32_t mask = std::bit_ceil(last + 1) - 1;
    uint32_t draw = 0;
    do {
      draw = static_cast<uint32_t>(generator()) & mask;
    } while (draw > last);
    std::swap(list[last], list[draw]);
  }
  return list;
}

std::vector<int64_t> draw_modes(int64_t length, int64_t modes, std::mt19937& generator) {
  std::vector<int64_t> list = shuffled(length / 2, generator);
  list.resize(static_cast<size_t>(std::min(modes, length / 2)));
  std::sort(list.begin(), list.end());
  return list;
}

}  // namespace

FourierIndex random_fourier_modes(int64_t h, int64_t input_size, int64_t modes,
                                  uint32_t random_seed) {
  std::mt19937 generator(random_seed);  // the same generator and seeding as numpy.random
  const int64_t decoder = decoder_length(h, input_size);
  FourierIndex index;
  index["enc_self"] = draw_modes(input_size, modes, generator);
  index["dec_self"] = draw_modes(decoder, modes, generator);
  index["dec_cross_q"] = draw_modes(decoder, modes, generator);
  index["dec_cross_kv"] = draw_modes(input_size, modes, generator);
  return index;
}

bool takes_all_fourier_modes(int64_t h, int64_t input_size, int64_t modes) {
  return modes >= std::max(input_size, decoder_length(h, input_size)) / 2;
}

}  // namespace flash::models
