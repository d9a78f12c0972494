// Files with a model and its hyperparameters, written here and by neuralforecast.

#include <flash_attention/models/checkpoint.h>
#include <flash_attention/models/fedformer.h>
#include <flash_attention/models/patchtst.h>
#include <flash_attention/models/tft.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <filesystem>

#include "message_of.h"
#include "models/fixture.h"
#include "models/temporary_file.h"
#include "tolerances.h"

namespace flash::tests {
namespace {

using models::load_model;
using models::PatchTST;
using nlohmann::json;
using testing::AllOf;
using testing::HasSubstr;
using testing::ThrowsMessage;

/// For each class a fixture whose model uses most options of the class.
const std::map<std::string, std::string> kFixtures{
    {"Autoformer", "autoformer_odd_futr_declonger_mq"},
    {"FEDformer", "fedformer_random_futr_mq"},
    {"Informer", "informer_futr_nodistil_mq"},
    {"PatchTST", "patchtst_sdpa_prenorm_affine_mq"},
    {"TFT", "tft_exog_mq_lstm2"},
    {"iTransformer", "itransformer_futr"}};

/// For each class a file that neuralforecast's `save` wrote, with inputs and the output.
const std::map<std::string, std::string> kNeuralforecastFiles{
    {"Autoformer", "neuralforecast_autoformer"},
    {"FEDformer", "neuralforecast_fedformer"},
    {"Informer", "neuralforecast_informer"},
    {"PatchTST", "neuralforecast_checkpoint"},
    {"TFT", "neuralforecast_tft"},
    {"iTransformer", "neuralforecast_itransformer"}};

std::string recorded_forward_of(const std::string& file) {
  return file == "neuralforecast_checkpoint" ? "neuralforecast_forward" : file + "_forward";
}

/// The forward in float64, after seeding as neuralforecast did.
at::Tensor output_of(models::ForecastModel& model, const Fixture& fixture) {
  model.module().to(torch::kDouble);
  torch::manual_seed(101);
  const torch::NoGradGuard no_grad;
  return model.forward(fixture.windows(torch::kDouble));
}

models::SafetensorsFile saved(models::ForecastModel& model,
                              const models::SafetensorsFile& keep = {}) {
  const TemporaryFile file(".safetensors");
  save_model(file.path(), model, keep);
  return models::read_safetensors(file.path());
}

std::string checkpoint_refusal(const models::SafetensorsFile& file,
                               const std::string& options = "{}") {
  return message_of<c10::ValueError>([&] { load_model(file, {}, options); });
}

/// A class and the name of a file.
class CheckpointOf : public testing::TestWithParam<std::pair<const std::string, std::string>> {};

class OurCheckpoint : public CheckpointOf {};

TEST_P(OurCheckpoint, ReturnsTheSameModel) {
  const auto& [model_class, name] = GetParam();
  const Fixture fixture = load_fixture(name);
  const auto model = model_of(fixture);
  const TemporaryFile file(".safetensors");
  save_model(file.path(), *model, {.tensors = {}, .metadata = {{"note", "mine"}}});
  EXPECT_EQ(models::read_safetensors(file.path()).metadata.at("note"), "mine");
  const auto loaded = load_model(file.path());
  EXPECT_FALSE(loaded->module().is_training());
  EXPECT_EQ(loaded->model_class(), model_class);
  EXPECT_EQ(loaded->outputsize_multiplier(), model->outputsize_multiplier());
  EXPECT_EQ(saved(*loaded).metadata, saved(*model).metadata);
  EXPECT_TRUE(torch::equal(output_of(*loaded, fixture), output_of(*model, fixture)));
}

INSTANTIATE_TEST_SUITE_P(Models, OurCheckpoint, testing::ValuesIn(kFixtures),
                         [](const auto& info) { return info.param.first; });

class NeuralforecastsCheckpoint : public CheckpointOf {
 protected:
  Fixture fixture() const {
    Fixture fixture;
    const auto recorded =
        models::read_safetensors(fixture_path(recorded_forward_of(GetParam().second)));
    for (const auto& [name, tensor] : recorded.tensors) {
      fixture.tensors[name == "y_hat" || name == "initial" ? name : "input/" + name] = tensor;
    }
    return fixture;
  }
  bool switch_changes_numbers() const {
    return GetParam().first == "Autoformer" || GetParam().first == "FEDformer";
  }
};

TEST_P(NeuralforecastsCheckpoint, LoadsAndPredictsTheSame) {
  for (const bool flash : {false, true}) {
    if (flash && switch_changes_numbers()) continue;
    const auto model = load_model(fixture_path(GetParam().second),
                                  {.use_flash_attention = flash, .flash_block_size = 4});
    EXPECT_EQ(model->model_class(), GetParam().first);
    const double tolerance = GetParam().first == "FEDformer" ? kModelFedformerCross : kModelFloat64;
    EXPECT_LT(max_difference(output_of(*model, fixture()), fixture().at("y_hat")), tolerance);
  }
}

TEST_P(NeuralforecastsCheckpoint, RoundTripsEverythingThatNeuralforecastReads) {
  const auto theirs = models::read_safetensors(fixture_path(GetParam().second));
  const auto model = load_model(theirs);
  const auto ours = saved(*model, theirs);
  ASSERT_EQ(ours.tensors.size(), theirs.tensors.size());
  for (const auto& [name, tensor] : theirs.tensors) {
    ASSERT_TRUE(ours.tensors.contains(name)) << name;
    EXPECT_TRUE(torch::equal(ours.tensors.at(name), tensor)) << name;
  }
  for (const char* key : {"model_class", "nf_format"}) {
    EXPECT_EQ(ours.metadata.at(key), theirs.metadata.at(key));
  }
  for (const char* key : {"hyper_parameters", "shared"}) {
    EXPECT_EQ(json::parse(ours.metadata.at(key)), json::parse(theirs.metadata.at(key)));
  }
}

INSTANTIATE_TEST_SUITE_P(Models, NeuralforecastsCheckpoint, testing::ValuesIn(kNeuralforecastFiles),
                         [](const auto& info) { return info.param.first; });

TEST(PatchTSTCheckpoint, KeepsTensorsOfLossesAndScaler) {
  // scaler_type "revin" has parameters, which neuralforecast stores with the model.
  auto theirs = models::read_safetensors(fixture_path("neuralforecast_checkpoint"));
  theirs.tensors["scaler.revin_bias"] = torch::rand({1, 1, 1, 1});
  theirs.tensors["scaler.revin_weight"] = torch::rand({1, 1, 1, 1});
  const auto model = load_model(theirs);
  models::load_state_dict(model->module(), theirs.tensors);
  const auto ours = saved(*model, theirs);
  for (const char* name : {"scaler.revin_bias", "scaler.revin_weight"}) {
    EXPECT_TRUE(torch::equal(ours.tensors.at(name), theirs.tensors.at(name))) << name;
  }
}

TEST(PatchTSTCheckpoint, HasTheInitialWeightsOfItsSeed) {
  // The head's weights are drawn last, so they are equal only if all others were drawn the same
  // way.
  const auto options = load_model<PatchTST>(fixture_path("neuralforecast_checkpoint"))->options;
  torch::manual_seed(1);
  PatchTST model(options);
  const auto expected = models::read_safetensors(fixture_path("neuralforecast_forward")).tensors;
  EXPECT_TRUE(
      torch::equal(model->named_parameters()["model.head.linear.weight"], expected.at("initial")));
}

TEST(PatchTSTCheckpoint, KeepsOptionsAndStatistics) {
  torch::manual_seed(3);
  PatchTST model(tiny_options()
                     .revin_affine(true)
                     .activation("relu")
                     .outputsize_multiplier(3)
                     .dropout(0.25)
                     .res_attention(false));
  model->forward(torch::randn({8, 24, 1}));  // moves the batch-norm statistics
  model->eval();
  PatchTST loaded = load_model<PatchTST>(saved(*model), {.use_flash_attention = true});
  EXPECT_EQ(loaded->options.dropout(), 0.25);
  EXPECT_EQ(loaded->options.activation(), "relu");
  EXPECT_EQ(loaded->options.outputsize_multiplier(), 3);
  EXPECT_FALSE(loaded->options.res_attention());
  EXPECT_TRUE(loaded->options.use_flash_attention());
  const torch::Tensor input = torch::randn({2, 24, 1});
  EXPECT_TRUE(torch::allclose(loaded->forward(input), model->forward(input), 1e-5, 1e-5));
}

TEST(FEDformerCheckpoint, ListsItsFrequenciesAndStoresSharedWeightsOnce) {
  const auto file = saved(*model_of(load_fixture("fedformer_random_futr_mq")));
  EXPECT_EQ(json::parse(file.metadata.at("fourier_index")),
            load_fixture("fedformer_random_futr_mq").description.at("fourier_index"));
  const std::string owner = "encoder.attn_layers.0.attention.inner_correlation.weights1";
  const std::string alias = "encoder.attn_layers.1.attention.inner_correlation.weights1";
  EXPECT_EQ(file.tensors.at(owner).scalar_type(), torch::kComplexFloat);
  EXPECT_FALSE(file.tensors.contains(alias));
  EXPECT_EQ(json::parse(file.metadata.at("shared")).at(owner), json::array({alias}));
}

TEST(FEDformerCheckpoint, InDoublePrecisionIsRejected) {
  const auto model = model_of(load_fixture("fedformer_low"));
  model->module().to(torch::kDouble);
  EXPECT_THAT([&] { saved(*model); },
              ThrowsMessage<c10::ValueError>(HasSubstr("call to(torch::kFloat) first")));
}

TEST(FEDformerCheckpoint, AcceptsASharedWeightUnderAnyOfItsNames) {
  const Fixture fixture = load_fixture("fedformer_random_futr_mq");
  const auto model = model_of(fixture);
  models::TensorMap all = models::neuralforecast_state_dict(*model);
  const std::string owner = "encoder.attn_layers.0.attention.inner_correlation.weights1";
  const std::string alias = "encoder.attn_layers.1.attention.inner_correlation.weights1";
  ASSERT_TRUE(all.contains(owner) && all.contains(alias));
  models::load_state_dict(model->module(), all);
  models::TensorMap only_alias = all;
  only_alias.erase(owner);
  models::load_state_dict(model->module(), only_alias);
  all[alias] = all.at(alias) + 1;
  EXPECT_THAT([&] { models::load_state_dict(model->module(), all); },
              ThrowsMessage<c10::ValueError>(
                  HasSubstr("one parameter with two values (1): " + alias + " and " + owner)));
}

TEST(FEDformerCheckpoint, WithoutFrequenciesAndSeedIsRejectedUnlessTheyAreGiven) {
  const Fixture fixture = load_fixture("fedformer_random_futr_mq");
  auto file = saved(*model_of(fixture));
  file.metadata.erase("fourier_index");
  json parameters = json::parse(file.metadata.at("hyper_parameters"));
  parameters["random_seed"] = nullptr;
  file.metadata["hyper_parameters"] = parameters.dump();
  EXPECT_THAT(checkpoint_refusal(file),
              AllOf(HasSubstr("expected fourier_index in the file's metadata"),
                    HasSubstr("give them as options, {\"fourier_index\": ")));
  const json index = {{"fourier_index", fixture.description.at("fourier_index")}};
  const auto model = load_model(file, {}, index.dump());
  EXPECT_LT(max_difference(output_of(*model, fixture), fixture.at("out64/y_hat")),
            kModelFedformerCross);
  parameters["modes"] = 64;  // all frequencies: nothing to choose, but the weights do not fit
  file.metadata["hyper_parameters"] = parameters.dump();
  EXPECT_THAT(checkpoint_refusal(file), HasSubstr("of another shape or kind"));
}

TEST(FEDformerCheckpoint, WithoutFrequenciesAndSeedIsAcceptedIfAllFrequenciesAreUsed) {
  const auto refused = [](int64_t modes) {
    models::FEDformer model(
        models::FEDformerOptions(/*h=*/20, /*input_size=*/28).hidden_size(8).modes(modes));
    auto file = saved(*model);
    file.metadata.erase("fourier_index");
    json parameters = json::parse(file.metadata.at("hyper_parameters"));
    parameters["random_seed"] = nullptr;
    file.metadata["hyper_parameters"] = parameters.dump();
    return checkpoint_refusal(file);
  };
  // Of 28 steps the encoder has 14 modes, of 34 the decoder has 17.
  EXPECT_THAT(refused(15), HasSubstr("expected fourier_index in the file's metadata"));
  EXPECT_EQ(refused(17), "no exception");
}

TEST(TFTCheckpoint, HasTheMaskThatNeuralforecastRequires) {
  const auto theirs = models::read_safetensors(fixture_path("neuralforecast_tft")).tensors;
  const auto model = load_model<models::TFT>(fixture_path("neuralforecast_tft"));
  const std::string mask = "temporal_fusion_decoder.attention._mask";
  EXPECT_FALSE(models::state_dict(*model).contains(mask));
  const auto file = saved(*model.ptr());
  EXPECT_TRUE(torch::equal(file.tensors.at(mask), theirs.at(mask)));
  models::load_state_dict(*model.ptr(), file.tensors);
}

TEST(Checkpoint, OfAnotherClassIsRejected) {
  EXPECT_THAT([] { load_model<PatchTST>(fixture_path("neuralforecast_tft")); },
              ThrowsMessage<c10::ValueError>(
                  HasSubstr("expected a file of the requested class, got one of TFT")));
}

TEST(Checkpoint, WithoutHyperparametersIsRejected) {
  EXPECT_THAT(
      [] { load_model(fixture_path("patchtst_train_bn")); },
      ThrowsMessage<c10::ValueError>(AllOf(HasSubstr("expected model_class and hyper_parameters"),
                                           HasSubstr("call load_state_dict"))));
}

TEST(Checkpoint, LetsOptionsOverrideTheFile) {
  const auto file = models::read_safetensors(fixture_path("neuralforecast_checkpoint"));
  const auto model =
      std::dynamic_pointer_cast<models::PatchTSTImpl>(load_model(file, {}, R"({"dropout": 0.5})"));
  EXPECT_EQ(model->options.dropout(), 0.5);
  EXPECT_EQ(checkpoint_refusal(file, R"({"drop": 0.5})"),
            "load_model: expected an option of PatchTST, got drop");
  EXPECT_EQ(checkpoint_refusal(file, "0.5"),
            "load_model: expected the options as a JSON object, got 0.5");
}

class BrokenCheckpoint : public testing::Test {
 protected:
  BrokenCheckpoint() : file_(saved(*PatchTST(tiny_options()))) {}

  void set(const std::string& name, const json& value) {
    json parameters = json::parse(file_.metadata.at("hyper_parameters"));
    parameters[name] = value;
    file_.metadata["hyper_parameters"] = parameters.dump();
  }

  void expect_refusal(const std::string& message) {
    EXPECT_THAT(checkpoint_refusal(file_), HasSubstr(message));
  }

  models::SafetensorsFile file_;
};

TEST_F(BrokenCheckpoint, OfAnotherModel) {
  file_.metadata["model_class"] = "NHITS";
  expect_refusal(
      "expected a model class among Autoformer, FEDformer, Informer, PatchTST, TFT, "
      "iTransformer, got \"NHITS\"");
}

TEST_F(BrokenCheckpoint, WhoseHyperparametersAreNotAnObject) {
  file_.metadata["hyper_parameters"] = "{\"h\": ";
  expect_refusal("expected hyper_parameters as a JSON object, got \"{\\\"h\\\": \"");
}

TEST_F(BrokenCheckpoint, LackingAHyperparameter) {
  json parameters = json::parse(file_.metadata.at("hyper_parameters"));
  parameters.erase("stride");
  file_.metadata["hyper_parameters"] = parameters.dump();
  expect_refusal("load_model: expected option stride, got none");
}

TEST_F(BrokenCheckpoint, WithAHyperparameterOfWrongType) {
  set("revin", "yes");
  expect_refusal("load_model: expected option revin as true or false, got \"yes\"");
}

TEST_F(BrokenCheckpoint, WithAnOptionThatTheModelLacks) {
  set("exclude_insample_y", true);
  expect_refusal("exclude_insample_y is not supported by PatchTST");
}

TEST_F(BrokenCheckpoint, WithColumnsThatTheModelLacks) {
  set("hist_exog_list", json::array());
  EXPECT_EQ(checkpoint_refusal(file_), "no exception");
  set("hist_exog_list", json::array({"price"}));
  expect_refusal("expected no hist_exog_list, got [\"price\"]; PatchTST has no such columns");
}

TEST_F(BrokenCheckpoint, WithCategoricalColumns) {
  set("cat_exog_list", json::array({"weekday"}));
  expect_refusal("expected no cat_exog_list, got [\"weekday\"]; neuralforecast embeds");
}

TEST_F(BrokenCheckpoint, WhoseWeightsDoNotFit) {
  set("hidden_size", 16);
  expect_refusal("model.backbone.W_P.bias expected Float [16], got Float [8]");
}

TEST_F(BrokenCheckpoint, WithAMissingOrUnexpectedWeight) {
  file_.tensors.erase("model.backbone.W_pos");
  file_.tensors["model.backbone.W_new"] = torch::ones({2});
  EXPECT_THAT(checkpoint_refusal(file_), AllOf(HasSubstr("missing (1): model.backbone.W_pos"),
                                               HasSubstr("unexpected (1): model.backbone.W_new")));
}

TEST_F(BrokenCheckpoint, WithoutAHead) {
  file_.tensors.erase("model.head.linear.bias");
  expect_refusal("expected model.head.linear.bias of a multiple of h = 4 elements, got none");
}

TEST_F(BrokenCheckpoint, Truncated) {
  const TemporaryFile file(".safetensors");
  save_model(file.path(), *PatchTST(tiny_options()));
  std::filesystem::resize_file(file.path(), std::filesystem::file_size(file.path()) - 4);
  EXPECT_THAT([&] { load_model(file.path()); },
              ThrowsMessage<c10::ValueError>(
                  AllOf(HasSubstr(file.path()), HasSubstr("the file is truncated or damaged"))));
}

}  // namespace
}  // namespace flash::tests
