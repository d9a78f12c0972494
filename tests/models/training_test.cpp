// The training loop, its optimiser and its progress line.

#include <flash_attention/models/patchtst.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "models/fixture.h"
#include "models/training_session.h"
#include "tolerances.h"
#include "train/output/evaluation.h"

namespace flash::tests {
namespace {

using models::Adam;
using models::PatchTST;
using testing::HasSubstr;
using testing::ThrowsMessage;

TrainingResult train_fresh(const Settings& settings) {
  Session session(settings);
  EXPECT_TRUE(session.run());
  return session.result();
}

TEST(Training, StepChangesEveryTrainedParameterAndNoOther) {
  for (const bool flash : {false, true}) {
    for (const bool residual : {false, true}) {
      torch::manual_seed(2);
      PatchTST model(
          tiny_options().revin_affine(true).res_attention(residual).use_flash_attention(flash));
      std::map<std::string, torch::Tensor> before;
      for (const auto& p : model->named_parameters()) before[p.key()] = p->detach().clone();
      std::vector<std::pair<std::string, torch::Tensor>> trained;
      for (const auto& p : model->named_parameters()) {
        if (p->requires_grad()) trained.emplace_back(p.key(), *p);
      }
      Adam optimizer(trained);
      torch::l1_loss(model->forward(torch::randn({6, 24, 1})).squeeze(2), torch::randn({6, 4}))
          .backward();
      optimizer.step(1e-3);
      for (const auto& p : model->named_parameters()) {
        EXPECT_EQ(!torch::equal(*p, before[p.key()]), p->requires_grad()) << p.key();
      }
    }
  }
}

TEST(AdamStep, EqualsLibtorch) {
  torch::manual_seed(1);
  const torch::Tensor start = torch::randn({7, 3});
  torch::Tensor ours = start.clone().requires_grad_(), theirs = start.clone().requires_grad_();
  Adam adam({{"weight", ours}});
  torch::optim::Adam reference({theirs}, torch::optim::AdamOptions(0.01));
  for (int i = 0; i < 5; ++i) {
    const torch::Tensor gradient = torch::randn({7, 3});
    ours.mutable_grad() = gradient;
    theirs.mutable_grad() = gradient.clone();
    adam.step(0.01);
    reference.step();
  }
  EXPECT_LT(max_difference(ours, theirs), 1e-6);  // rounding of five steps of 0.01
}

TEST(AdamStep, TreatsComplexWeightsAsPairsOfRealOnes) {
  torch::manual_seed(1);
  const torch::Tensor start = torch::randn({4, 2});
  torch::Tensor pairs = start.clone().requires_grad_();
  torch::Tensor complex = torch::view_as_complex(start.clone()).requires_grad_();
  Adam of_pairs({{"weight", pairs}}), of_complex({{"weight", complex}});
  for (int i = 0; i < 3; ++i) {
    const torch::Tensor gradient = torch::randn({4, 2});
    pairs.mutable_grad() = gradient;
    complex.mutable_grad() = torch::view_as_complex(gradient.clone());
    of_pairs.step(0.01);
    of_complex.step(0.01);
  }
  EXPECT_TRUE(torch::equal(torch::view_as_real(complex.detach()), pairs.detach()));
}

TEST(Training, GivesTheSameLossesWithFlashAndStandardAttention) {
  for (const char* model_class : {"PatchTST", "TFT", "iTransformer"}) {
    Settings settings = quick_settings(model_class);
    const TrainingResult flash = train_fresh(settings);
    settings.model.attention = "standard";
    const TrainingResult standard = train_fresh(settings);
    ASSERT_EQ(standard.epochs.size(), 2u);
    for (size_t i = 0; i < standard.epochs.size(); ++i) {
      EXPECT_NEAR(flash.epochs[i].train_loss, standard.epochs[i].train_loss, kTrainingLossFloat32)
          << model_class;
      EXPECT_NEAR(flash.epochs[i].validation_loss, standard.epochs[i].validation_loss,
                  kTrainingLossFloat32);
    }
  }
}

TEST(Training, IsDeterministicForASeed) {
  const TrainingResult first = train_fresh(quick_settings());
  const TrainingResult second = train_fresh(quick_settings());
  EXPECT_EQ(first.epochs[1].train_loss, second.epochs[1].train_loss);
  EXPECT_EQ(first.epochs[1].validation_loss, second.epochs[1].validation_loss);
}

TEST(Training, LearnsAndKeepsTheBestEpoch) {
  Settings settings = quick_settings();
  settings.training.epochs = 12;
  settings.training.learning_rate = 0.02;  // large enough for later epochs to get worse
  Session session(settings);
  ASSERT_TRUE(session.run());
  const TrainingResult& result = session.result();
  EXPECT_LT(result.epochs.back().train_loss, 0.7 * result.epochs.front().train_loss);
  double least = std::numeric_limits<double>::infinity();
  for (const auto& epoch : result.epochs) least = std::min(least, epoch.validation_loss);
  const auto& kept = result.epochs[static_cast<size_t>(result.best_epoch) - 1];
  EXPECT_EQ(kept.validation_loss, least);
  const auto again =
      models::validate(session.forecaster, session.validation_windows, 16, *session.processes);
  EXPECT_EQ(again->loss, least);
  EXPECT_NEAR(kept.validation_mae, least, 1e-6);  // the loss is MAE, summed in another order
}

TEST(Training, DecaysTheLearningRateAfterTheGivenEpochs) {
  Settings settings = quick_settings();
  settings.training.epochs = 4;
  settings.training.learning_rate = 0.25;
  settings.training.decay = 0.5;
  settings.training.decay_after = 2;
  std::vector<double> rates;
  for (const auto& epoch : train_fresh(settings).epochs) rates.push_back(epoch.learning_rate);
  EXPECT_EQ(rates, (std::vector<double>{0.25, 0.25, 0.125, 0.0625}));
}

TEST(Training, KeepsTheLearningRateWithoutDecay) {
  Settings settings = quick_settings();
  settings.training.epochs = settings.training.decay_after + 3;
  for (const auto& epoch : train_fresh(settings).epochs) EXPECT_EQ(epoch.learning_rate, 5e-4);
}

TEST(Training, StopsEarlyWithoutABetterEpoch) {
  Settings settings = quick_settings();
  settings.training.epochs = 50;
  settings.training.patience = 2;
  settings.training.learning_rate = 0.5;  // does not converge
  const TrainingResult result = train_fresh(settings);
  EXPECT_LT(result.epochs.size(), 50u);
  EXPECT_EQ(static_cast<int64_t>(result.epochs.size()), result.best_epoch + 2);
}

TEST(Training, StopsWhenTheLossIsNotFinite) {
  Settings settings = quick_settings();
  settings.training.learning_rate = 1e30;
  EXPECT_THAT([&] { train_fresh(settings); },
              ThrowsMessage<c10::ValueError>(HasSubstr("lower the learning rate")));
}

TEST(ProgressLine, IsALinePerEpochInAFile) {
  std::ostringstream text;
  Progress progress(text, /*in_place=*/false, 2, 10);
  progress.step(1, 1, 0.5);
  EXPECT_EQ(text.str(), "");
  progress.epoch(1, 0.5, 0.25, true);
  EXPECT_THAT(text.str(),
              testing::MatchesRegex(
                  "epoch 1/2  step 10  train loss 0.5000  validation loss 0.2500 \\(best\\)  "
                  "[0-9]+ s, [0-9]+ s left\n"));
}

TEST(ProgressLine, IsRewrittenInPlaceOnATerminal) {
  std::ostringstream text;
  Progress progress(text, /*in_place=*/true, 2, 10);
  progress.step(1, 3, 0.5);
  progress.step(1, 4, 0.4);  // too soon after the previous one to be shown
  EXPECT_THAT(text.str(),
              testing::MatchesRegex("\repoch 1/2  step 3/10  loss 0.5000  [0-9]+ s left\x1b\\[K"));
}

TEST(ProgressLine, FormatsDurations) {
  EXPECT_EQ(models::format_duration(0.4), "0 s");
  EXPECT_EQ(models::format_duration(185.0), "3:05 min");
  EXPECT_EQ(models::format_duration(7267.0), "2:01:07 h");
}

}  // namespace
}  // namespace flash::tests
