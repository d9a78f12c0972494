#pragma once
// A model against everything that a fixture records of neuralforecast's: outputs in both
// precisions, gradients of inputs and parameters, statistics, what is trained. In a model's test:
//
//     INSTANTIATE_TEST_SUITE_P(TFT, AgainstPython,
//                              testing::ValuesIn(parity_cases({"tft_noexog"}, {.flash = true})),
//                              parity_name);

#include <flash_attention/models/model_config.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "models/fixture.h"
#include "tolerances.h"

namespace flash::tests {

/// One fixture and the way to compute it.
struct ParityCase {
  std::string fixture;
  models::ModelConfig config;
  double float64;  ///< largest absolute difference of outputs and gradients
};

struct ParityOptions {
  /// Also with flash attention, for models whose results it does not change.
  bool flash;
  double float64 = kModelFloat64;
};

/// Each fixture with standard attention, with flash attention, and with gradient checkpointing.
std::vector<ParityCase> parity_cases(const std::vector<std::string>& fixtures,
                                     const ParityOptions& options);

/// "tft_noexog_flash"
std::string parity_name(const testing::TestParamInfo<ParityCase>& info);

/// The tests are in parity.cpp.
class AgainstPython : public testing::TestWithParam<ParityCase> {
 protected:
  AgainstPython();

  /// Forward and backward in float64 of the fixture's loss. Returns the output; `windows_` then has
  /// the inputs' gradients.
  at::Tensor run_backward();
  /// Seeds torch as neuralforecast was seeded before its forward.
  void seed_forward() const;

  Fixture fixture_;
  std::shared_ptr<models::ForecastModel> model_;
  models::WindowsBatch windows_;
};

}  // namespace flash::tests
