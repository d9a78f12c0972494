#pragma once
// Which frequencies a FEDformer looks at, as neuralforecast chooses them.

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace flash::models {

/// A sorted list for each of "enc_self", "dec_self", "dec_cross_q" and "dec_cross_kv".
using FourierIndex = std::map<std::string, std::vector<int64_t>>;

/// What neuralforecast's FEDformer draws at construction with mode_select "random" after
/// `numpy.random.seed(random_seed)`; at most `modes` of the len / 2 modes of each block's length.
FourierIndex random_fourier_modes(int64_t h, int64_t input_size, int64_t modes,
                                  uint32_t random_seed);

/// True where there are no more modes than are taken, so that every draw gives the same.
bool takes_all_fourier_modes(int64_t h, int64_t input_size, int64_t modes);

}  // namespace flash::models
