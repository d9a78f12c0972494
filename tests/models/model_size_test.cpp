// The size computed from options is that of the model that is built from them.

#include "model_size.h"

#include <flash_attention/models/autoformer.h>
#include <flash_attention/models/fedformer.h>
#include <flash_attention/models/informer.h>
#include <flash_attention/models/itransformer.h>
#include <flash_attention/models/patchtst.h>
#include <flash_attention/models/registry.h>
#include <flash_attention/models/tft.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <nlohmann/json.hpp>
#include <random>

namespace flash::tests {
namespace {

using models::ModelSize;
using nlohmann::json;

/// Values of every option on which weights depend, to choose from at random.
const std::map<std::string, json> kValues{
    {"Autoformer", json::parse(R"({"h": [2, 5], "input_size": [16, 31], "hidden_size": [8, 22],
       "n_head": [1, 3, 4], "conv_hidden_size": [1, 12], "encoder_layers": [1, 3],
       "decoder_layers": [1, 4], "futr_exog_list": [null, ["a"], ["a", "b", "c"]]})")},
    {"FEDformer", json::parse(R"({"h": [2, 5], "input_size": [16, 41], "hidden_size": [8, 27],
       "modes": [2, 5, 64], "mode_select": ["random", "low"], "conv_hidden_size": [1, 12],
       "encoder_layers": [1, 3], "decoder_layers": [1, 4], "futr_exog_list": [null, ["a", "b"]]})")},
    {"Informer", json::parse(R"({"h": [2, 5], "input_size": [16, 31], "hidden_size": [8, 22],
       "n_head": [1, 3, 4], "conv_hidden_size": [1, 12], "encoder_layers": [1, 3],
       "decoder_layers": [1, 4], "distil": [true, false],
       "futr_exog_list": [null, ["a"], ["a", "b", "c"]]})")},
    {"PatchTST", json::parse(R"({"h": [2, 5], "input_size": [16, 31], "hidden_size": [8, 21],
       "n_heads": [1, 3, 4], "linear_hidden_size": [1, 12], "encoder_layers": [1, 3],
       "patch_len": [1, 7, 100], "stride": [1, 3, 40], "revin": [true, false],
       "revin_affine": [true, false], "learn_pos_embed": [true, false]})")},
    {"TFT", json::parse(R"({"h": [2, 5], "input_size": [16, 31], "hidden_size": [1, 8, 12],
       "n_head": [1], "tgt_size": [1, 2], "n_rnn_layers": [1, 3], "rnn_type": ["lstm", "GRU"],
       "one_rnn_initial_state": [true, false], "futr_exog_list": [null, ["a"], ["a", "b"]],
       "hist_exog_list": [null, ["c", "d"]], "stat_exog_list": [null, ["e"], ["e", "f"]]})")},
    {"iTransformer", json::parse(R"({"h": [2, 5], "input_size": [16, 31], "n_series": [1, 3],
       "hidden_size": [8, 21], "n_heads": [1, 3, 4], "d_ff": [1, 12], "e_layers": [1, 3],
       "futr_exog_list": [null, ["a", "b"]]})")}};

template <class Impl>
bool take_size(models::ForecastModel& model, ModelSize& size) {
  const auto* found = dynamic_cast<const Impl*>(&model);
  if (found != nullptr) size = models::model_size(found->options);
  return found != nullptr;
}

ModelSize size_of_options(models::ForecastModel& model) {
  ModelSize size;
  EXPECT_TRUE(take_size<models::AutoformerImpl>(model, size) ||
              take_size<models::FEDformerImpl>(model, size) ||
              take_size<models::InformerImpl>(model, size) ||
              take_size<models::ITransformerImpl>(model, size) ||
              take_size<models::PatchTSTImpl>(model, size) ||
              take_size<models::TFTImpl>(model, size));
  return size;
}

class SizeOf : public testing::TestWithParam<std::pair<const std::string, json>> {};

TEST_P(SizeOf, OptionsEqualsThatOfTheStateDict) {
  constexpr int kDraws = 60;  // each pair of values of two options about ten times
  const auto& [model_class, values] = GetParam();
  std::mt19937 draw(7);
  for (int i = 0; i < kDraws; ++i) {
    json options;
    for (const auto& [name, choices] : values.items()) {
      options[name] = choices[draw() % choices.size()];
    }
    const auto model = models::make_model(model_class, options.dump(), 1 + draw() % 3);
    double bytes = 0;
    const models::TensorMap tensors = models::state_dict(model->module());
    for (const auto& [name, tensor] : tensors) bytes += static_cast<double>(tensor.nbytes());
    const ModelSize size = size_of_options(*model);
    EXPECT_EQ(size.bytes, bytes) << model_class << options;
    EXPECT_EQ(size.tensors, static_cast<double>(tensors.size())) << model_class << options;
  }
}

INSTANTIATE_TEST_SUITE_P(Models, SizeOf, testing::ValuesIn(kValues),
                         [](const auto& info) { return info.param.first; });

TEST(SizeOf, OptionsBelowOneIsSmall) {
  // A product of two of them would be large again.
  models::TFTOptions options(-4, -8);
  options.hidden_size(-(int64_t{1} << 30)).n_rnn_layers(-(int64_t{1} << 30)).tgt_size(0);
  EXPECT_LT(models::model_size(options).bytes, 1000.0);  // tensors of constant size
}

TEST(SizeOf, TheLargestOptionsIsFinite) {
  constexpr int64_t kMost = INT64_MAX;
  models::PatchTSTOptions options(kMost, kMost);
  options.hidden_size(kMost).encoder_layers(kMost).stride(1).outputsize_multiplier(kMost);
  EXPECT_TRUE(std::isfinite(models::model_size(options).memory()));
}

}  // namespace
}  // namespace flash::tests
