// Interrupted trainings: their files, and the same result as without an interruption.

#include "train/output/run_file.h"

#include <flash_attention/models/safetensors.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <limits>

#include "models/fixture.h"
#include "models/temporary_file.h"
#include "models/training_session.h"

namespace flash::tests {
namespace {

using testing::HasSubstr;
using testing::ThrowsMessage;

/// Trains without interruption, and with one after `steps` steps, resumed from a file in a new
/// session.
class Interruption : public testing::TestWithParam<const char*> {};

TEST_P(Interruption, DoesNotChangeTheResult) {
  Settings settings = quick_settings(GetParam());
  settings.training.epochs = 3;
  if (std::string(GetParam()) == "TFT") settings.loss.name = "MQLoss";
  Session whole(settings);
  ASSERT_TRUE(whole.run());
  const int64_t per_epoch = whole.trainer.steps_per_epoch();
  // Within the first epoch, between two, and within the validation of the second.
  for (const int64_t asked : {int64_t{2}, per_epoch + 1, 2 * per_epoch + 4}) {
    const TemporaryFile file(".checkpoint");
    Session first(settings);
    int64_t count = 0;
    ASSERT_FALSE(first.run([&] { return count++ == asked; }));
    first.save(file.path());
    Session second(settings);
    torch::rand({3});  // a generator elsewhere
    second.restore(file.path());
    EXPECT_EQ(second.result().seconds, first.result().seconds);
    ASSERT_TRUE(second.run());
    for (const auto& [name, tensor] : whole.forecaster.state()) {
      EXPECT_TRUE(torch::equal(second.forecaster.state().at(name), tensor)) << name;
    }
    ASSERT_EQ(second.result().epochs.size(), whole.result().epochs.size());
    for (size_t i = 0; i < whole.result().epochs.size(); ++i) {
      EXPECT_EQ(second.result().epochs[i].train_loss, whole.result().epochs[i].train_loss);
      EXPECT_EQ(second.result().epochs[i].validation_loss,
                whole.result().epochs[i].validation_loss);
    }
    EXPECT_EQ(second.result().best_epoch, whole.result().best_epoch);
  }
}

INSTANTIATE_TEST_SUITE_P(Models, Interruption,
                         testing::Values("TFT", "Informer", "Autoformer", "FEDformer", "PatchTST",
                                         "iTransformer"),
                         [](const auto& info) { return std::string(info.param); });

/// A session that is interrupted after some steps, and its file.
struct Interrupted {
  explicit Interrupted(int64_t steps) : session(quick_settings()) {
    int64_t count = 0;
    EXPECT_FALSE(session.run([&] { return count++ == steps; }));
    session.save(file.path());
  }
  Session session;
  TemporaryFile file{".checkpoint"};
};

/// Weights before and after a failed restoration, and its error message.
std::string run_refusal(const std::string& path, const Settings& settings = quick_settings()) {
  Session session(settings);
  std::map<std::string, torch::Tensor> before;
  for (const auto& [name, tensor] : session.forecaster.state()) before[name] = tensor.clone();
  std::string message = "not refused";
  try {
    session.restore(path);
  } catch (const c10::ValueError& error) {
    message = error.what_without_backtrace();
  }
  for (const auto& [name, tensor] : session.forecaster.state()) {
    EXPECT_TRUE(torch::equal(tensor, before[name])) << name << " was half loaded";
  }
  EXPECT_EQ(session.trainer.state.step, 0);
  return message;
}

TEST(RunFile, IsRejectedIfTruncated) {
  const Interrupted run(3);
  std::stringstream contents;
  contents << std::ifstream(run.file.path(), std::ios::binary).rdbuf();
  const std::string whole = contents.str();
  const TemporaryFile cut(".checkpoint", whole.substr(0, whole.size() - 10));
  EXPECT_THAT(run_refusal(cut.path()), HasSubstr("truncated"));
}

TEST(RunFile, IsRejectedWithTensorsOfAnotherTraining) {
  const Interrupted run(3);
  Settings wider = quick_settings();
  wider.model.options = R"({"hidden_size": 10, "n_heads": 2, "linear_hidden_size": 12,
                            "encoder_layers": 2, "patch_len": 6, "stride": 3})";
  EXPECT_THAT(run_refusal(run.file.path(), wider),
              testing::AllOf(HasSubstr("adam/exp_avg/"), HasSubstr("expected Float [10"),
                             HasSubstr("got Float [8")));
  auto file = models::read_safetensors(run.file.path());
  file.tensors.erase("generator/order");
  file.tensors["model/extra"] = torch::zeros({2});
  const TemporaryFile other(".checkpoint");
  models::write_safetensors(other.path(), file.tensors, file.metadata);
  EXPECT_THAT(run_refusal(other.path()), testing::AllOf(HasSubstr("missing: generator/order"),
                                                        HasSubstr("unexpected: model/extra")));
}

TEST(RunFile, IsRejectedWithAnImpossiblePosition) {
  const Interrupted run(3);
  const auto file = models::read_safetensors(run.file.path());
  const TemporaryFile changed(".checkpoint");

  models::TensorMap tensors = file.tensors;
  tensors["order"] = tensors.at("order").clone();
  tensors["order"][0].copy_(tensors["order"][1]);  // one window is duplicated, another missing
  models::write_safetensors(changed.path(), tensors, file.metadata);
  EXPECT_THAT(run_refusal(changed.path()), HasSubstr("windows, got one with gaps"));

  models::Metadata metadata = file.metadata;
  auto description = nlohmann::json::parse(metadata.at("flash_train_run"));
  description["step"] = 9999;
  metadata["flash_train_run"] = description.dump();
  models::write_safetensors(changed.path(), file.tensors, metadata);
  EXPECT_THAT(run_refusal(changed.path()),
              HasSubstr("expected a position in the training, got epoch 1, step 9999 of "));
}

TEST(RunFile, IsRejectedIfTheDataHasChanged) {
  const Interrupted run(3);
  EXPECT_THAT(
      [&] {
        models::restore_run(models::read_run(run.file.path()), run.session.forecaster,
                            const_cast<Trainer&>(run.session.trainer), "another");
      },
      ThrowsMessage<c10::ValueError>(HasSubstr("has other values now")));
}

TEST(Fingerprint, DependsOnValuesNamesTimesAndStaticColumns) {
  Session session(quick_settings());
  const std::string before = models::fingerprint(session.data);
  models::PreparedData data = session.data;
  EXPECT_EQ(models::fingerprint(data), before);
  data.series[1].name = "c";
  EXPECT_NE(models::fingerprint(data), before);
  data = session.data;
  models::TimeAxis axis = *data.series[0].axis;
  axis.times.resize(120);
  data.series[0].axis = std::make_shared<models::TimeAxis>(axis);
  EXPECT_NE(models::fingerprint(data), before);
  data = session.data;
  auto store = std::make_shared<models::SeriesStore>(*data.store);
  store->values = store->values.clone();
  store->values[0][3].add_(1);
  data.store = store;
  EXPECT_NE(models::fingerprint(data), before);
  store = std::make_shared<models::SeriesStore>(*session.data.store);
  store->stat = torch::ones({2, 1});
  data.store = store;
  EXPECT_NE(models::fingerprint(data), before);
}

TEST(RunFile, StoresAnInfiniteValidationLoss) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  Settings settings = quick_settings();
  settings.training.epochs = 3;
  Session first(settings);
  int64_t count = 0;
  const int64_t stop = first.trainer.steps_per_epoch() + 6;  // in the second epoch
  ASSERT_FALSE(first.run([&] { return count++ == stop; }));
  auto& epoch = const_cast<Trainer&>(first.trainer).state.result.epochs.at(0);
  epoch.validation_loss = epoch.validation_mse = kInfinity;
  const TemporaryFile file(".checkpoint");
  first.save(file.path());
  Session second(settings);
  second.restore(file.path());
  EXPECT_FALSE(std::isfinite(second.result().epochs.at(0).validation_loss));
  EXPECT_EQ(second.result().epochs.at(0).train_loss, epoch.train_loss);
  EXPECT_TRUE(second.run());
}

TEST(RunFile, RejectsAModelFile) {
  EXPECT_THAT([] { models::read_run(fixture_path("patchtst_train_bn")); },
              ThrowsMessage<c10::ValueError>(HasSubstr("expected the checkpoint of a training")));
}

}  // namespace
}  // namespace flash::tests
