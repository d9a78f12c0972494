// Autoformer against neuralforecast, exact attention in its place, and what it refuses and keeps.

#include <flash_attention/models/autoformer.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "models/parity.h"

namespace flash::tests {
namespace {

INSTANTIATE_TEST_SUITE_P(Autoformer, AgainstPython,
                         testing::ValuesIn(parity_cases({"autoformer_even",
                                                         "autoformer_odd_futr_declonger_mq",
                                                         "autoformer_train"},
                                                        {.flash = false})),
                         parity_name);

}  // namespace
}  // namespace flash::tests
