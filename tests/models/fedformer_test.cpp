// FEDformer against neuralforecast, exact attention in its place, and what it refuses and keeps.

#include <flash_attention/models/fedformer.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "models/parity.h"

namespace flash::tests {
namespace {

INSTANTIATE_TEST_SUITE_P(FEDformer, AgainstPython,
                         testing::ValuesIn(parity_cases({"fedformer_low", "fedformer_random_futr_mq",
                                                         "fedformer_defaultmodes_odd"},
                                                        {.flash = false,
                                                         .float64 = kModelFedformerCross})),
                         parity_name);

}  // namespace
}  // namespace flash::tests
