// make_model: models by class name and JSON options.

#include <flash_attention/models/registry.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "message_of.h"
#include "models/fixture.h"

namespace flash::tests {
namespace {

using models::make_model;
using testing::ElementsAre;
using testing::StartsWith;

std::string registry_refusal(const std::string& model_class, const std::string& options) {
  return message_of<c10::ValueError>([&] { make_model(model_class, options); });
}

TEST(Registry, ListsTheSixModels) {
  EXPECT_THAT(models::model_classes(), ElementsAre("Autoformer", "FEDformer", "Informer",
                                                   "PatchTST", "TFT", "iTransformer"));
}

TEST(Registry, BuildsEachModelWithDefaultsConfigAndOutputs) {
  for (const std::string& name : models::model_classes()) {
    nlohmann::json options = {{"h", 2}, {"input_size", 32}};
    if (name == "iTransformer") options["n_series"] = 1;
    const auto model = make_model(name, options.dump(), /*outputsize_multiplier=*/3,
                                  {.use_flash_attention = true, .flash_block_size = 7});
    EXPECT_EQ(model->model_class(), name);
    EXPECT_EQ(model->outputsize_multiplier(), 3);
    const torch::NoGradGuard no_grad;
    model->module().eval();
    const torch::Tensor output = model->forward(torch::randn({2, 32, 1}));
    EXPECT_EQ(output.sizes(), (std::vector<int64_t>{2, 2, 3})) << name;
  }
}

TEST(Registry, AcceptsOptionsByTheNamesOfNeuralforecast) {
  const auto model = std::dynamic_pointer_cast<models::PatchTSTImpl>(make_model(
      "PatchTST", R"({"h": 4, "input_size": 24, "hidden_size": 8, "n_heads": 2, "dropout": 0,
                      "revin": false, "activation": "relu"})"));
  ASSERT_NE(model, nullptr);
  EXPECT_EQ(model->options.hidden_size(), 8);
  EXPECT_EQ(model->options.dropout(), 0.0);
  EXPECT_FALSE(model->options.revin());
  EXPECT_EQ(model->options.activation(), "relu");
  EXPECT_EQ(model->options.stride(), 8);  // the default
}

TEST(Registry, RejectsUnknownClassesAndOptions) {
  EXPECT_EQ(registry_refusal("NHITS", "{}"),
            "make_model: expected a model class among Autoformer, FEDformer, Informer, PatchTST, "
            "TFT, iTransformer, got \"NHITS\"");
  EXPECT_THAT(registry_refusal("PatchTST", R"({"h": 4, "input_size": 24, "n_head": 2})"),
              StartsWith("PatchTST: expected options among activation, attn_dropout, "));
  EXPECT_EQ(
      registry_refusal("TFT", "{\"h\": "),
      "TFT: expected the options as a JSON object, got \"{\\\"h\\\": \", which is not JSON at "
      "byte 7");
  EXPECT_EQ(registry_refusal("TFT", "[1]"), "TFT: expected the options as a JSON object, got [1]");
}

TEST(Registry, RejectsMissingAndMistypedOptions) {
  EXPECT_EQ(registry_refusal("TFT", R"({"h": 4})"),
            "TFT: expected option input_size, which has no default, got none");
  EXPECT_EQ(registry_refusal("iTransformer", R"({"h": 4, "input_size": 8})"),
            "iTransformer: expected option n_series, which has no default, got none");
  const auto of_tft = [](const std::string& option) {
    return registry_refusal("TFT", R"({"h": 4, "input_size": 8, )" + option + "}");
  };
  EXPECT_EQ(of_tft("\"n_head\": 2.5"), "TFT: expected option n_head as a whole number, got 2.5");
  EXPECT_EQ(of_tft("\"n_head\": true"), "TFT: expected option n_head as a whole number, got true");
  EXPECT_EQ(of_tft("\"n_head\": 18446744073709551615"),
            "TFT: expected option n_head as a whole number, got 18446744073709551615");
  EXPECT_EQ(of_tft("\"dropout\": \"0.1\""),
            "TFT: expected option dropout as a number, got \"0.1\"");
  EXPECT_EQ(of_tft("\"rnn_type\": 3"), "TFT: expected option rnn_type as a string, got 3");
  EXPECT_EQ(of_tft("\"one_rnn_initial_state\": 1"),
            "TFT: expected option one_rnn_initial_state as true or false, got 1");
  EXPECT_EQ(of_tft("\"futr_exog_list\": \"price\""),
            "TFT: expected option futr_exog_list as a list of names, got \"price\"");
  EXPECT_EQ(of_tft("\"futr_exog_list\": null"), "no exception");
}

TEST(Registry, RejectsFrequenciesThatAreNotLists) {
  EXPECT_EQ(registry_refusal("FEDformer", R"({"h": 4, "input_size": 24, "fourier_index": [1, 2]})"),
            "FEDformer: expected option fourier_index as an object of lists of whole numbers, got "
            "[1,2]");
}

}  // namespace
}  // namespace flash::tests
