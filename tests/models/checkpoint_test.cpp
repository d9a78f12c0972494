// Models with their hyperparameters in one file, ours and neuralforecast's.

#include <flash_attention/models/checkpoint.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "models/fixture.h"
#include "models/temporary_file.h"
#include "tolerances.h"

namespace flash::tests {
namespace {

using models::load_patchtst;
using models::PatchTST;
using testing::AllOf;
using testing::HasSubstr;
using testing::ThrowsMessage;

std::string fixture_path(const std::string& name) {
  return std::string(FLASH_FIXTURES) + "/" + name + ".safetensors";
}

TEST(Checkpoint, ReturnsTheSameModel) {
  torch::manual_seed(3);
  PatchTST model(tiny_options()
                     .revin_affine(true)
                     .activation("relu")
                     .outputsize_multiplier(3)
                     .dropout(0.25)
                     .res_attention(false));
  model->forward(torch::randn({8, 24, 1}));  // moves the batch-norm statistics
  model->eval();
  const TemporaryFile file(".safetensors");
  save_patchtst(file.path(), model, {{"note", "mine"}});
  const auto read = models::read_safetensors(file.path());
  EXPECT_EQ(read.metadata.at("note"), "mine");
  PatchTST loaded = load_patchtst(read);
  EXPECT_FALSE(loaded->is_training());
  EXPECT_EQ(loaded->options.dropout(), 0.25);
  EXPECT_EQ(loaded->options.activation(), "relu");
  EXPECT_EQ(loaded->options.outputsize_multiplier(), 3);
  EXPECT_FALSE(loaded->options.res_attention());
  const torch::Tensor input = torch::randn({2, 24, 1});
  EXPECT_TRUE(torch::equal(loaded->forward(input), model->forward(input)));
}

TEST(Checkpoint, OfNeuralforecastLoadsWithEitherAttention) {
  // Written by `PatchTST.save` with a quantile loss; the second file holds an input and the output.
  const auto expected = models::read_safetensors(fixture_path("neuralforecast_forward")).tensors;
  for (const bool flash : {false, true}) {
    PatchTST model = load_patchtst(fixture_path("neuralforecast_checkpoint"),
                                   {.use_flash_attention = flash, .flash_block_size = 4});
    EXPECT_EQ(model->options.use_flash_attention(), flash);
    EXPECT_EQ(model->options.outputsize_multiplier(), 5);
    model->to(torch::kDouble);
    const torch::Tensor output = model->forward(expected.at("insample_y").to(torch::kDouble));
    EXPECT_LT(max_difference(output, expected.at("y_hat")), kModelFloat64);
  }
}

TEST(Checkpoint, OfNeuralforecastBeganWithTheWeightsOfTheSameSeed) {
  // The head is drawn last, so it is right only if everything before it was drawn alike.
  const auto options = load_patchtst(fixture_path("neuralforecast_checkpoint"))->options;
  torch::manual_seed(1);
  PatchTST model(options);
  const auto expected = models::read_safetensors(fixture_path("neuralforecast_forward")).tensors;
  EXPECT_TRUE(
      torch::equal(model->named_parameters()["model.head.linear.weight"], expected.at("initial")));
}

TEST(Checkpoint, WithoutHyperparametersIsRefused) {
  EXPECT_THAT(
      [] { load_patchtst(fixture_path("patchtst_train_bn")); },
      ThrowsMessage<c10::ValueError>(AllOf(HasSubstr("expected model_class and hyper_parameters"),
                                           HasSubstr("call load_state_dict"))));
}

class BrokenCheckpoint : public testing::Test {
 protected:
  BrokenCheckpoint() {
    PatchTST model(tiny_options());
    const TemporaryFile file(".safetensors");
    save_patchtst(file.path(), model);
    file_ = models::read_safetensors(file.path());
  }

  void replace(const std::string& text, const std::string& by) {
    std::string& parameters = file_.metadata.at("hyper_parameters");
    const size_t at = parameters.find(text);
    ASSERT_NE(at, std::string::npos) << parameters;
    parameters.replace(at, text.size(), by);
  }

  void expect_refusal(const std::string& message) {
    EXPECT_THAT([this] { load_patchtst(file_); },
                ThrowsMessage<c10::ValueError>(HasSubstr(message)));
  }

  models::SafetensorsFile file_;
};

TEST_F(BrokenCheckpoint, OfAnotherModel) {
  file_.metadata["model_class"] = "NHITS";
  expect_refusal("expected a file of model PatchTST, got NHITS");
}

TEST_F(BrokenCheckpoint, WhoseHyperparametersAreNoObject) {
  file_.metadata["hyper_parameters"] = "{\"h\": ";
  expect_refusal("expected hyper_parameters as a JSON object");
}

TEST_F(BrokenCheckpoint, LackingAHyperparameter) {
  replace("\"stride\"", "\"strides\"");
  expect_refusal("expected stride in hyper_parameters");
}

TEST_F(BrokenCheckpoint, WithAHyperparameterOfWrongType) {
  replace("\"revin\":true", "\"revin\":\"yes\"");
  expect_refusal("hyper-parameter revin has a value of wrong type: \"yes\"");
}

TEST_F(BrokenCheckpoint, WithAnOptionThatTheModelLacks) {
  replace("{", "{\"exclude_insample_y\":true,");
  expect_refusal("exclude_insample_y is not supported");
}

TEST_F(BrokenCheckpoint, WhoseWeightsDoNotFit) {
  replace("\"hidden_size\":8", "\"hidden_size\":16");
  expect_refusal("of another shape or kind");
}

TEST_F(BrokenCheckpoint, WithoutAHead) {
  file_.tensors.erase("model.head.linear.bias");
  expect_refusal("expected model.head.linear.bias of a multiple of h = 4 numbers, got none");
}

}  // namespace
}  // namespace flash::tests
