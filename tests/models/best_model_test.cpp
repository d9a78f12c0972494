// The best weights of a training are on disk, however it ends.

#include "train/loop/best_model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <limits>

#include "models/training_session.h"

namespace flash::tests {
namespace {

namespace fs = std::filesystem;
using models::BestModel;
using testing::HasSubstr;

class BestModels : public testing::Test {
 protected:
  BestModels() : folder_(fs::temp_directory_path() / ("flash_best_" + std::to_string(getpid()))) {
    fs::create_directories(folder_ / "out");
  }
  ~BestModels() override { fs::remove_all(folder_); }

  models::OutputSettings output() const {
    models::OutputSettings settings;
    settings.model = folder_ / "out" / "model";
    return settings;
  }
  /// Trains, and makes the weights NaN after the first epoch, as a loss that diverges does.
  static void train_until_nan(Session& session, BestModel& best) {
    EXPECT_THAT(
        [&] {
          session.run(never, [&](bool is_best) {
            if (is_best) best.keep(session.forecaster, session.result().best_epoch);
            torch::NoGradGuard no_grad;
            for (const auto& [name, parameter] : session.forecaster.parameters()) {
              torch::Tensor(parameter).fill_(std::numeric_limits<float>::quiet_NaN());
            }
          });
        },
        testing::ThrowsMessage<c10::ValueError>(
            HasSubstr("expected a finite loss, got nan in epoch 2, step 1")));
  }
  static void expect_best(const Session& session, const std::string& path) {
    const TableForecaster loaded = models::load_forecaster(path, "", 64);
    const auto& best = session.trainer.state.best;
    for (const auto& [name, tensor] : loaded.state()) {
      EXPECT_TRUE(torch::equal(tensor, best.at(name))) << name;
      EXPECT_TRUE(!tensor.is_floating_point() || tensor.isfinite().all().item<bool>()) << name;
    }
  }

  fs::path folder_;
};

TEST_F(BestModels, AreOnDiskWhenTheLossBecomesNaN) {
  Session session(quick_settings());
  BestModel best(output(), /*resumed=*/false);
  EXPECT_EQ(best.rescue(session.forecaster, session.trainer.state), "") << "there is none yet";
  train_until_nan(session, best);
  const std::string path = output().model + ".best";
  expect_best(session, path);
  EXPECT_EQ(best.rescue(session.forecaster, session.trainer.state),
            "the model of epoch 1, the best so far, is in " + path);
  EXPECT_FALSE(fs::exists(output().model)) << "the older model may be the better one";
}

TEST_F(BestModels, AreSavedOnFailureWithoutAModelOutput) {
  Session session(quick_settings());
  models::OutputSettings none;
  none.checkpoint = folder_ / "run";
  BestModel best(none, /*resumed=*/false);
  train_until_nan(session, best);
  EXPECT_FALSE(fs::exists(folder_ / "run.best"));
  EXPECT_EQ(best.rescue(session.forecaster, session.trainer.state),
            "the model of epoch 1, the best so far, is in " + (folder_ / "run.best").string());
  expect_best(session, folder_ / "run.best");
}

TEST_F(BestModels, AreSavedElsewhereIfTheFolderIsGone) {
  Session session(quick_settings());
  BestModel best(output(), /*resumed=*/false);
  train_until_nan(session, best);
  fs::remove_all(folder_ / "out");
  const char* before = std::getenv("TMPDIR");
  const std::string restored = before == nullptr ? "" : before;
  setenv("TMPDIR", folder_.c_str(), 1);
  EXPECT_EQ(best.rescue(session.forecaster, session.trainer.state),
            "the model of epoch 1, the best so far, is in " + (folder_ / "model.best").string());
  expect_best(session, folder_ / "model.best");
  fs::remove(folder_ / "model.best");
  setenv("TMPDIR", "/nonexistent", 1);
  const fs::path here = fs::current_path();
  fs::current_path(folder_);
  EXPECT_EQ(best.rescue(session.forecaster, session.trainer.state),
            "the model of epoch 1, the best so far, is in model.best");
  expect_best(session, folder_ / "model.best");
  fs::remove(folder_ / "model.best");
  fs::create_directory(folder_ / "gone");
  fs::current_path(folder_ / "gone");
  fs::remove(folder_ / "gone");
  EXPECT_THAT(best.rescue(session.forecaster, session.trainer.state),
              testing::AllOf(HasSubstr("the weights of epoch 1, the best, are lost"),
                             HasSubstr("model.best: cannot be written: No such file")));
  fs::current_path(here);
  before == nullptr ? unsetenv("TMPDIR") : setenv("TMPDIR", restored.c_str(), 1);
}

TEST_F(BestModels, AreRemovedAfterTheOutputIsWritten) {
  Session session(quick_settings());
  BestModel best(output(), /*resumed=*/false);
  ASSERT_TRUE(session.run(never, [&](bool is_best) {
    if (is_best) best.keep(session.forecaster, session.result().best_epoch);
  }));
  EXPECT_TRUE(fs::exists(output().model + ".best"));
  best.finish(session.forecaster, session.result().best_epoch);
  EXPECT_FALSE(fs::exists(output().model + ".best"));
  expect_best(session, output().model);
  EXPECT_THAT(best.rescue(session.forecaster, session.trainer.state),
              HasSubstr("the best so far, is in " + output().model));
}

TEST_F(BestModels, OfAResumedTrainingAreRemovedToo) {
  Session session(quick_settings());
  BestModel first(output(), /*resumed=*/false);
  int steps = 0;
  ASSERT_FALSE(session.run([&] { return ++steps > session.trainer.steps_per_epoch() + 4; },
                           [&](bool is_best) {
                             if (is_best) first.keep(session.forecaster, 1);
                           }));
  EXPECT_THAT(first.where(), HasSubstr("the model of epoch 1"));
  BestModel second(output(), /*resumed=*/true);
  EXPECT_EQ(second.where(), "");
  ASSERT_TRUE(session.run());
  second.finish(session.forecaster, session.result().best_epoch);
  EXPECT_FALSE(fs::exists(output().model + ".best"));
}

TEST_F(BestModels, DoNotEndTheTrainingIfTheyCannotBeWritten) {
  Session session(quick_settings());
  BestModel best(output(), /*resumed=*/false);
  fs::remove_all(folder_ / "out");
  testing::internal::CaptureStderr();
  best.keep(session.forecaster, 1);
  EXPECT_THAT(testing::internal::GetCapturedStderr(),
              testing::AllOf(HasSubstr("model.best: cannot be written: No such file or directory"),
                             HasSubstr("the training goes on, with the weights of epoch 1 in")));
  EXPECT_EQ(best.where(), "");
}

}  // namespace
}  // namespace flash::tests
