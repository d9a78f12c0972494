#pragma once
// The frequencies of a FEDformer, chosen as in neuralforecast.

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace flash::models {

/// A sorted list for each of "enc_self", "dec_self", "dec_cross_q" and "dec_cross_kv".
using FourierIndex = std::map<std::string, std::vector<int64_t>>;

/// The frequencies that neuralforecast's FEDformer draws at construction with mode_select "random"
/// after `numpy.random.seed(random_seed)`: for each block at most `modes` of length / 2.
FourierIndex random_fourier_modes(int64_t h, int64_t input_size, int64_t modes,
                                  uint32_t random_seed);

/// Whether every draw gives the same frequencies, because all of them are taken.
bool takes_all_fourier_modes(int64_t h, int64_t input_size, int64_t modes);

}  // namespace flash::models
