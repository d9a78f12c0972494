// Window scalers against neuralforecast's; see tests/fixtures/make_loss_fixtures.py.

#include <flash_attention/models/losses.h>
#include <flash_attention/models/temporal_norm.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <limits>
#include <string>
#include <tuple>

#include "message_of.h"
#include "models/fixture.h"
#include "tolerances.h"

namespace flash::tests {
namespace {

using models::TemporalNorm;
using models::TemporalNormOptions;
using models::WindowsBatch;
using models::WindowScaling;

constexpr int64_t kInputSize = 12;

/// (layout, scaler)
class ScalerAgainstPython : public testing::TestWithParam<std::tuple<std::string, std::string>> {
 protected:
  static const Fixture& fixture() {
    static const Fixture loaded = load_fixture("scalers");
    return loaded;
  }

  ScalerAgainstPython()
      : before_(fixture().under(std::get<0>(GetParam()) + "/")),
        after_(fixture().under(std::get<0>(GetParam()) + "/" + std::get<1>(GetParam()) + "/")),
        norm_(TemporalNormOptions(std::get<1>(GetParam())).num_features(4)) {
    norm_->to(at::kDouble);
    if (norm_->options.scaler_type() == "revin") {
      const torch::NoGradGuard no_grad;
      norm_->named_parameters()["revin_bias"].add_(0.3);
      norm_->named_parameters()["revin_weight"].add_(0.2);
    }
    windows_.insample_y = past(before_.at("y"));
    windows_.insample_mask = past(after_.at("mask"));
    windows_.futr_exog = before_.at("futr_exog");
    if (before_.contains("hist_exog")) windows_.hist_exog = before_.at("hist_exog");
  }

  static at::Tensor past(const at::Tensor& values) { return values.slice(1, 0, kInputSize); }
  static at::Tensor future(const at::Tensor& values) { return values.slice(1, kInputSize); }

  models::TensorMap before_, after_;
  TemporalNorm norm_;
  WindowsBatch windows_;
};

TEST_P(ScalerAgainstPython, ScalesSeriesAndExogenousColumns) {
  const auto [scaled, scaling] = norm_->transform(windows_);
  EXPECT_LT(max_difference(scaled.insample_y, past(after_.at("y"))), kModelFloat64);
  EXPECT_LT(max_difference(scaled.futr_exog, after_.at("futr_exog")), kModelFloat64);
  if (windows_.hist_exog.defined()) {
    EXPECT_LT(max_difference(scaled.hist_exog, after_.at("hist_exog")), kModelFloat64);
  }
  EXPECT_TRUE(torch::equal(scaled.insample_mask, windows_.insample_mask));
  EXPECT_LT(max_difference(scaling.transform(future(before_.at("y"))), future(after_.at("y"))),
            kModelFloat64);
  if (norm_->options.scaler_type() == "identity") {
    EXPECT_FALSE(scaling.loc.defined());
    return;
  }
  EXPECT_LT(max_difference(scaling.loc, after_.at("loc")), kModelFloat64);
  EXPECT_LT(max_difference(scaling.scale, after_.at("scale")), kModelFloat64);
}

TEST_P(ScalerAgainstPython, GivesTheSameLossesAndForecasts) {
  const WindowScaling scaling = norm_->transform(windows_).second;
  const at::Tensor y = future(before_.at("y")), mask = future(after_.at("mask"));
  for (const std::string kind : {"MAE", "MQLoss", "Normal"}) {
    const auto loss = models::make_loss(kind);
    at::Tensor output = before_.at(kind + "/output").clone().requires_grad_();
    const at::Tensor value = loss->training_loss(output, y, scaling, mask);
    EXPECT_LT(max_difference(value, after_.at(kind + "/train")), kModelFloat64) << kind;
    value.backward();
    EXPECT_LT(max_difference(output.grad(), after_.at(kind + "/grad")), kModelFloat64) << kind;
    // The asinh of the scaler "invariant" is undone by sinh, which reaches 1e4 here.
    const at::Tensor& expected = after_.at(kind + "/forecast");
    const double size = std::max(1.0, expected.abs().max().item<double>());
    EXPECT_LT(max_difference(loss->forecast(output, scaling), expected), kModelFloat64 * size)
        << kind;
    EXPECT_LT(
        max_difference(loss->validation_loss(output, y, scaling, mask), after_.at(kind + "/valid")),
        kModelFloat64 * size)
        << kind;
  }
}

TEST_P(ScalerAgainstPython, IsInvertible) {
  const auto [scaled, scaling] = norm_->transform(windows_);
  const at::Tensor back = scaling.inverse_transform(scaled.insample_y);
  const at::Tensor expected = norm_->options.scaler_type() == "revin"  // has parameters
                                  ? scaled.insample_y * scaling.scale + scaling.loc
                                  : windows_.insample_y;
  EXPECT_LT(max_difference(back, expected), kModelFloat64);
}

INSTANTIATE_TEST_SUITE_P(Fixtures, ScalerAgainstPython,
                         testing::Combine(testing::Values("one_series", "three_series"),
                                          testing::ValuesIn(models::scaler_types())),
                         [](const auto& info) {
                           return std::get<0>(info.param) + "_" + std::get<1>(info.param);
                         });

class EveryScaler : public testing::TestWithParam<std::string> {};

TEST_P(EveryScaler, StaysFiniteIfEverythingIsMasked) {
  TemporalNorm norm(GetParam());
  WindowsBatch windows{.insample_y = torch::randn({2, 6, 1}),
                       .insample_mask = torch::zeros({2, 6, 1})};
  const auto [scaled, scaling] = norm->transform(windows);
  EXPECT_TRUE(scaled.insample_y.isfinite().all().item<bool>());
  EXPECT_TRUE(scaling.inverse_transform(scaled.insample_y).isfinite().all().item<bool>());
}

TEST_P(EveryScaler, IgnoresNanInStatistics) {
  TemporalNorm norm(GetParam());
  const at::Tensor y = torch::randn({2, 6, 1});
  at::Tensor gap = y.clone();
  gap.select(1, 3).fill_(std::numeric_limits<float>::quiet_NaN());
  at::Tensor mask = torch::ones_like(y);
  mask.select(1, 3).zero_();
  const WindowScaling masked = norm->transform({.insample_y = y, .insample_mask = mask}).second;
  const WindowScaling with_gap = norm->transform({.insample_y = gap}).second;
  if (GetParam() == "identity") return;
  EXPECT_TRUE(torch::equal(masked.loc, with_gap.loc));
  EXPECT_TRUE(torch::equal(masked.scale, with_gap.scale));
}

TEST_P(EveryScaler, AcceptsABooleanMaskAndNone) {
  TemporalNorm norm(GetParam());
  const at::Tensor y = torch::randn({2, 7, 3});
  const at::Tensor all = norm->transform({.insample_y = y}).first.insample_y;
  const WindowsBatch masked{.insample_y = y, .insample_mask = torch::ones_like(y) > 0};
  EXPECT_TRUE(torch::equal(norm->transform(masked).first.insample_y, all));
}

TEST_P(EveryScaler, DoesNotModifyTheCallersWindows) {
  TemporalNorm norm(GetParam());
  const at::Tensor y = torch::randn({2, 7, 1}), copy = y.clone();
  norm->transform({.insample_y = y, .insample_mask = torch::ones_like(y)});
  EXPECT_TRUE(torch::equal(y, copy));
}

INSTANTIATE_TEST_SUITE_P(All, EveryScaler, testing::ValuesIn(models::scaler_types()),
                         [](const auto& info) { return info.param; });

TEST(TemporalNormModule, LearnsWithDistributionLossesOnly) {
  TemporalNorm norm(TemporalNormOptions("revin").num_features(3));
  ASSERT_EQ(norm->named_parameters().size(), 2U);
  EXPECT_EQ(norm->named_parameters()["revin_bias"].sizes(), (std::vector<int64_t>{1, 1, 3, 1}));
  const WindowsBatch windows{.insample_y = torch::randn({4, 8, 1})};
  const at::Tensor y = torch::randn({4, 3, 1});
  const auto gradient = [&](const std::string& name) {
    const auto loss = models::make_loss(name);
    const auto [scaled, scaling] = norm->transform(windows);
    const at::Tensor output = torch::zeros({4, 3, loss->outputsize_multiplier()}).requires_grad_();
    loss->training_loss(output, y, scaling).backward();
    return norm->named_parameters()["revin_bias"].grad();
  };
  EXPECT_FALSE(gradient("MAE").defined());
  EXPECT_NE(gradient("Normal").abs().max().item<double>(), 0.0);
}

TEST(TemporalNormModule, ClonesItsParameters) {
  TemporalNorm norm("revin");
  const auto copy = std::dynamic_pointer_cast<models::TemporalNormImpl>(norm->clone());
  {
    const torch::NoGradGuard no_grad;
    copy->parameters()[0].add_(1.0);
  }
  const at::Tensor y = torch::randn({2, 5, 1});
  EXPECT_FALSE(torch::equal(copy->statistics(y).loc, norm->statistics(y).loc));
}

TEST(TemporalNormModule, RejectsInvalidOptionsAndTensors) {
  EXPECT_EQ(message_of<c10::Error>([] { TemporalNorm norm("robust-iqr"); }),
            "TemporalNorm: expected scaler_type to be one of identity, invariant, minmax, minmax1, "
            "revin, robust, standard; got \"robust-iqr\"");
  EXPECT_EQ(message_of<c10::Error>(
                [] { TemporalNorm norm(TemporalNormOptions("revin").num_features(0)); }),
            "TemporalNorm: expected num_features of at least 1, got 0");
  TemporalNorm norm("standard");
  const auto refusal = [&](const WindowsBatch& windows) {
    return message_of<c10::Error>([&] { norm->transform(windows); });
  };
  const at::Tensor y = torch::zeros({2, 5, 1}), many = torch::zeros({2, 5, 3});
  EXPECT_EQ(refusal({.insample_y = torch::zeros({2, 5})}),
            "TemporalNorm: expected insample_y [batch, input_size, series], got [2, 5]");
  EXPECT_EQ(refusal({}),
            "TemporalNorm: expected insample_y [batch, input_size, series], got nothing");
  EXPECT_EQ(refusal({.insample_y = torch::zeros({2, 5, 1}, at::kLong)}),
            "TemporalNorm: expected insample_y of float32 or float64, got Long");
  EXPECT_EQ(refusal({.insample_y = y, .insample_mask = many}),
            "TemporalNorm: expected insample_mask of insample_y's shape [2, 5, 1], got [2, 5, 3]");
  EXPECT_EQ(refusal({.insample_y = y, .futr_exog = torch::zeros({2, 4, 2})}),
            "TemporalNorm: expected futr_exog [2, 5 + h, columns] of one series, or [2, columns, 5 "
            "+ h, 1], got [2, 4, 2]");
  EXPECT_EQ(refusal({.insample_y = many, .hist_exog = torch::zeros({2, 5, 2})}),
            "TemporalNorm: expected hist_exog [2, 5, columns] beside one series, got [2, 5, 2] "
            "beside 3");
}

}  // namespace
}  // namespace flash::tests
