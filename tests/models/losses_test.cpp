// Losses against neuralforecast's; the keys are explained in tests/fixtures/make_loss_fixtures.py.

#include <flash_attention/models/losses.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <limits>
#include <string>
#include <vector>

#include "message_of.h"
#include "models/fixture.h"
#include "tolerances.h"

namespace flash::tests {
namespace {

using models::DistributionLoss;
using models::LossOptions;
using models::make_loss;
using models::PointLoss;
using models::WindowScaling;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kLoss = kModelFloat64;

LossOptions options_from(const nlohmann::json& arguments) {
  LossOptions options;
  for (const auto& [name, value] : arguments.items()) {
    if (name == "level")
      options.level(value.get<std::vector<double>>());
    else if (name == "quantiles")
      options.quantiles(value.get<std::vector<double>>());
    else if (name == "horizon_weight")
      options.horizon_weight(value.get<std::vector<double>>());
    else if (name == "distribution")
      options.distribution(value.get<std::string>());
    else if (name == "return_params")
      options.return_params(value);
    else if (name == "q")
      options.q(value);
    else if (name == "delta")
      options.delta(value);
    else
      TORCH_CHECK(false, "unknown argument in fixture: ", name);
  }
  return options;
}

template <class Options>
std::string loss_refusal(const std::string& name, const Options& options) {
  return message_of<c10::Error>([&] { make_loss(name, options); });
}

class LossAgainstPython : public testing::TestWithParam<std::string> {
 protected:
  static const Fixture& fixture() {
    static const Fixture loaded = load_fixture("losses");
    return loaded;
  }

  LossAgainstPython()
      : description_(fixture().description.at("cases").at(GetParam())),
        tensors_(fixture().under(GetParam() + "/")),
        loss_(make_loss(description_.at("loss"), options_from(description_.at("arguments")))) {
    if (tensors_.contains("loc")) {
      scaling_ = {.scaler = models::Scaler::kStandard,
                  .shift = tensors_.at("loc"),
                  .spread = tensors_.at("scale"),
                  .loc = tensors_.at("loc"),
                  .scale = tensors_.at("scale")};
    }
  }

  at::Tensor mask() const {
    return tensors_.contains("mask") ? tensors_.at("mask").clone() : at::Tensor();
  }

  /// The stored tensors `prefix`0, 1, ...
  std::vector<at::Tensor> list(const std::string& prefix) const {
    std::vector<at::Tensor> found;
    while (tensors_.contains(prefix + std::to_string(found.size()))) {
      found.push_back(tensors_.at(prefix + std::to_string(found.size())));
    }
    return found;
  }

  nlohmann::json description_;
  models::TensorMap tensors_;
  std::shared_ptr<models::Loss> loss_;
  WindowScaling scaling_;
};

TEST_P(LossAgainstPython, HasTheSameNamesAndOutputs) {
  EXPECT_EQ(loss_->name(), description_.at("loss"));
  EXPECT_EQ(loss_->outputsize_multiplier(), description_.at("outputsize_multiplier"));
  EXPECT_EQ(loss_->output_names(), description_.at("output_names").get<std::vector<std::string>>());
  EXPECT_EQ(loss_->is_distribution_output(), loss_->name() == "DistributionLoss");
}

TEST_P(LossAgainstPython, MapsTheOutputAlike) {
  const at::Tensor& output = tensors_.at("output");
  if (const auto* point = dynamic_cast<const PointLoss*>(loss_.get())) {
    EXPECT_TRUE(torch::equal(point->domain_map(output), tensors_.at("map/0")));
    return;
  }
  const auto& loss = dynamic_cast<const DistributionLoss&>(*loss_);
  const std::vector<at::Tensor> pieces = loss.domain_map(output), expected = list("map/");
  ASSERT_EQ(pieces.size(), expected.size());
  for (size_t i = 0; i < pieces.size(); ++i) EXPECT_TRUE(torch::equal(pieces[i], expected[i]));
  const std::vector<at::Tensor> parameters = loss.scale_decouple(pieces, scaling_);
  const std::vector<at::Tensor> expected_parameters = list("parameter/");
  ASSERT_EQ(parameters.size(), expected_parameters.size());
  for (size_t i = 0; i < parameters.size(); ++i) {
    EXPECT_LT(max_difference(parameters[i], expected_parameters[i]), kLoss) << i;
  }
}

TEST_P(LossAgainstPython, HasTheSameValueAndGradient) {
  at::Tensor output = tensors_.at("output").clone().requires_grad_();
  const at::Tensor value =
      loss_->is_distribution_output()
          ? loss_->training_loss(output, tensors_.at("y"), scaling_, mask())
          : (*std::static_pointer_cast<PointLoss>(loss_))(
                tensors_.at("y"), std::static_pointer_cast<PointLoss>(loss_)->domain_map(output),
                mask());
  EXPECT_LT(max_difference(value, tensors_.at("loss")), kLoss);
  value.backward();
  EXPECT_LT(max_difference(output.grad(), tensors_.at("grad")), kLoss);
}

TEST_P(LossAgainstPython, IgnoresMaskedValues) {
  at::Tensor some = mask().defined() ? mask() : at::ones_like(tensors_.at("y"));
  some.select(1, 2).zero_();
  at::Tensor output = tensors_.at("output").clone().requires_grad_();
  const at::Tensor y = at::where(some == 0, kNan, tensors_.at("y"));
  const at::Tensor value = loss_->training_loss(output, y, scaling_, some);
  value.backward();
  const at::Tensor filled = loss_->training_loss(output, tensors_.at("y"), scaling_, some);
  EXPECT_EQ(value.item<double>(), filled.item<double>());
  EXPECT_TRUE(output.grad().isfinite().all().item<bool>());
}

TEST_P(LossAgainstPython, ForecastsMeanAndQuantiles) {
  const at::Tensor forecast = loss_->forecast(tensors_.at("output"), scaling_);
  EXPECT_EQ(forecast.size(-1), static_cast<int64_t>(loss_->output_names().size()));
  if (!loss_->is_distribution_output()) {
    EXPECT_TRUE(torch::equal(forecast, tensors_.at("map/0").view_as(forecast)));
    return;
  }
  std::vector<at::Tensor> columns{tensors_.at("mean").unsqueeze(-1), tensors_.at("quantiles")};
  if (loss_->options.return_params()) columns.push_back(at::stack(list("parameter/"), -1));
  EXPECT_LT(max_difference(forecast, at::cat(columns, -1)), kLoss);
}

TEST_P(LossAgainstPython, WorksInFloat32) {
  const auto single = [](const at::Tensor& t) { return t.defined() ? t.to(at::kFloat) : t; };
  const WindowScaling scaling{.scaler = scaling_.scaler,
                              .shift = single(scaling_.shift),
                              .spread = single(scaling_.spread),
                              .loc = single(scaling_.loc),
                              .scale = single(scaling_.scale)};
  const at::Tensor output = single(tensors_.at("output"));
  const at::Tensor value =
      loss_->validation_loss(output, single(tensors_.at("y")), scaling, single(mask()));
  const at::Tensor exact =
      loss_->validation_loss(tensors_.at("output"), tensors_.at("y"), scaling_, mask());
  EXPECT_EQ(value.scalar_type(), at::kFloat);
  EXPECT_NEAR(value.item<double>(), exact.item<double>(), kModelFloat32);
  EXPECT_EQ(loss_->forecast(output, scaling).scalar_type(), at::kFloat);
}

std::vector<std::string> case_names() {
  std::vector<std::string> names;
  const nlohmann::json description = load_fixture("losses").description;
  for (const auto& [name, one] : description.at("cases").items()) names.push_back(name);
  return names;
}

INSTANTIATE_TEST_SUITE_P(Fixtures, LossAgainstPython, testing::ValuesIn(case_names()),
                         [](const auto& info) { return info.param; });

/// The loss of a model's fixture.
std::shared_ptr<models::Loss> fixture_loss(const std::string& name) {
  return name == "MQ3" ? make_loss("MQLoss", LossOptions().quantiles({0.1, 0.5, 0.9}))
                       : make_loss(name);
}

class MappingOfAModel : public testing::TestWithParam<const char*> {};

TEST_P(MappingOfAModel, EqualsTheOriginal) {
  const Fixture fixture = load_fixture(GetParam());
  const auto loss = fixture_loss(fixture.description.at("case").at("loss"));
  const at::Tensor& output = fixture.at("out64/y_hat");
  std::vector<at::Tensor> pieces;
  if (const auto* distribution = dynamic_cast<const DistributionLoss*>(loss.get())) {
    pieces = distribution->domain_map(output);
  } else {
    pieces = {dynamic_cast<const PointLoss&>(*loss).domain_map(output)};
  }
  ASSERT_EQ(pieces.size(), fixture.under("map64/").size());
  for (size_t i = 0; i < pieces.size(); ++i) {
    EXPECT_TRUE(torch::equal(pieces[i], fixture.at("map64/" + std::to_string(i)))) << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Fixtures, MappingOfAModel,
                         testing::Values("autoformer_even", "autoformer_odd_futr_declonger_mq",
                                         "fedformer_random_futr_mq", "informer_futr_nodistil_mq",
                                         "itransformer_base", "itransformer_futr",
                                         "itransformer_nonorm_normal", "patchtst_default_like",
                                         "patchtst_norevin_fixedpos_studentt",
                                         "patchtst_sdpa_prenorm_affine_mq", "tft_exog_mq_lstm2",
                                         "tft_futr_only_normal", "tft_gru_oneinit_studentt"),
                         [](const auto& info) { return std::string(info.param); });

TEST(MQLossOfSeveralSeries, KeepsSeriesAndQuantilesApart) {
  // iTransformer's projection has output m of series n at m * N + n, which neuralforecast reads as
  // n * M + m, as the fixture shows. Here the correct order is expected.
  const Fixture fixture = load_fixture("itransformer_mq_layout_quirk");
  const auto loss = std::static_pointer_cast<PointLoss>(fixture_loss("MQ3"));
  const at::Tensor& output = fixture.at("out64/y_hat");  // [2, 5, 3 quantiles * 4 series]
  const at::Tensor mapped = loss->domain_map(output);
  ASSERT_EQ(mapped.sizes(), fixture.at("map64/0").sizes());
  EXPECT_FALSE(torch::equal(mapped, fixture.at("map64/0")));
  for (int64_t series = 0; series < 4; ++series) {
    for (int64_t quantile = 0; quantile < 3; ++quantile) {
      EXPECT_TRUE(torch::equal(mapped.select(2, series).select(2, quantile),
                               output.select(2, quantile * 4 + series)));
    }
  }
}

TEST(Losses, AreZeroIfEverythingIsMasked) {
  for (const std::string name : {"MAE", "MQLoss", "Normal"}) {
    const auto loss = make_loss(name);
    at::Tensor output = torch::randn({2, 3, loss->outputsize_multiplier()}).requires_grad_();
    const at::Tensor y = torch::randn({2, 3, 1});
    const at::Tensor value = loss->training_loss(output, y, {}, torch::zeros_like(y));
    value.backward();
    EXPECT_EQ(value.item<double>(), 0.0);
    EXPECT_EQ(output.grad().abs().max().item<double>(), 0.0);
  }
}

TEST(Losses, AcceptABooleanMask) {
  const auto loss = make_loss("MSE");
  const at::Tensor output = torch::randn({2, 3, 1}), y = torch::randn({2, 3, 1});
  const at::Tensor mask = torch::rand({2, 3, 1}) < 0.5;
  EXPECT_EQ(loss->training_loss(output, y, {}, mask).item<double>(),
            loss->training_loss(output, y, {}, mask.to(at::kFloat)).item<double>());
}

TEST(Quantiles, OfCountsAreTheSmallestThatSuffice) {
  // P(X <= 0) = 0.5 at rate log 2; a large rate must not need a search from 0.
  const auto loss = std::static_pointer_cast<DistributionLoss>(make_loss("Poisson"));
  const at::Tensor rate = at::tensor({std::log(2.0), 1e6, 1e-10}, at::kDouble).view({1, 3, 1});
  const at::Tensor found = loss->quantiles({rate}, {0.4999, 0.5001, 0.975}).view({3, 3});
  const at::Tensor expected =  // scipy.stats.poisson.ppf
      at::tensor({0.0, 1.0, 3.0, 1e6, 1e6, 1001960.0, 0.0, 0.0, 0.0}, at::kDouble).view({3, 3});
  EXPECT_TRUE(torch::equal(found, expected)) << found;
}

TEST(Quantiles, OfStudentsTAreAccurateFarInTheTails) {
  // df 1 and 2 have closed forms: tan(pi (q - 1/2)), and a (2 q - 1) sqrt(2 / (1 - (2 q - 1)^2)).
  const auto loss = std::static_pointer_cast<DistributionLoss>(make_loss("StudentT"));
  const at::Tensor df = at::tensor({1.0, 2.0, 1e7}, at::kDouble).view({1, 3, 1});
  const at::Tensor zero = at::zeros_like(df), one = at::ones_like(df);
  for (const double q : {1e-6, 0.02, 0.5, 0.7, 0.999}) {
    const at::Tensor found = loss->quantiles({df, zero, one}, {q}).flatten();
    const double cauchy = std::tan(M_PI * (q - 0.5)), u = 2.0 * q - 1.0;
    const double two = u * std::sqrt(2.0 / (1.0 - u * u));
    EXPECT_NEAR(found[0].item<double>(), cauchy, 1e-9 * std::abs(cauchy) + 1e-15) << q;
    EXPECT_NEAR(found[1].item<double>(), two, 1e-9 * std::abs(two) + 1e-15) << q;
  }
  EXPECT_NEAR(loss->quantiles({df, zero, one}, {0.975}).flatten()[2].item<double>(), 1.9599640,
              1e-6);
}

TEST(Quantiles, OfNanParametersAreNan) {
  for (const std::string name : {"Normal", "StudentT", "Poisson"}) {
    const auto loss = std::static_pointer_cast<DistributionLoss>(make_loss(name));
    const std::vector<at::Tensor> nan(loss->outputsize_multiplier(), at::full({1, 1, 1}, kNan));
    EXPECT_TRUE(loss->quantiles(nan, {0.1}).isnan().all().item<bool>()) << name;
  }
}

TEST(MakeLoss, KnowsEveryName) {
  for (const std::string& name : models::loss_names()) {
    EXPECT_EQ(make_loss(name, LossOptions().distribution("Normal"))->name(), name);
  }
  for (const std::string& name : models::distribution_names()) {
    EXPECT_EQ(make_loss(name)->options.distribution(), name);
  }
}

TEST(MakeLoss, RejectsUnknownNames) {
  EXPECT_EQ(loss_refusal("mae", LossOptions()),
            "make_loss: expected one of DistributionLoss, HuberLoss, MAE, MAPE, MQLoss, MSE, "
            "QuantileLoss, RMSE, SMAPE, or for DistributionLoss the name of a distribution "
            "(Bernoulli, NegativeBinomial, Normal, Poisson, StudentT); got \"mae\"");
  EXPECT_EQ(
      loss_refusal("DistributionLoss", LossOptions().distribution("Tweedie")),
      "DistributionLoss: expected distribution to be one of Bernoulli, NegativeBinomial, Normal, "
      "Poisson, StudentT; got \"Tweedie\"");
}

TEST(MakeLoss, RejectsOptionsOutOfRange) {
  EXPECT_EQ(loss_refusal("MQLoss", LossOptions().level({80, 100})),
            "MQLoss: expected levels in percent, between 0 and 100, got 100");
  EXPECT_EQ(loss_refusal("MQLoss", LossOptions().level({80, 90, 80})),
            "MQLoss: expected each level once, got 80 twice");
  EXPECT_EQ(loss_refusal("MQLoss", LossOptions().quantiles({0.5, 90})),
            "MQLoss: expected quantiles between 0 and 1, got 90; write 0.9 for 90 %");
  EXPECT_EQ(loss_refusal("Normal", LossOptions().quantiles({0.5, 0.1, 0.5})),
            "DistributionLoss: expected each quantile once, got 0.5 twice");
  EXPECT_EQ(loss_refusal("QuantileLoss", LossOptions().q(0.0)),
            "QuantileLoss: expected quantiles between 0 and 1, got 0");
  EXPECT_EQ(loss_refusal("HuberLoss", LossOptions().delta(0.0)),
            "HuberLoss: expected delta above 0, got 0");
  EXPECT_EQ(loss_refusal("MAE", LossOptions().horizon_weight({1.0, -1.0})),
            "MAE: expected weights of at least 0 as horizon_weight, got -1");
}

TEST(Losses, RejectTensorsThatDoNotFit) {
  const auto mq = make_loss("MQLoss");
  const at::Tensor y = torch::zeros({2, 3, 1});
  EXPECT_EQ(message_of<c10::Error>([&] {
              mq->training_loss(torch::zeros({2, 3, 4}), y);
            }),
            "MQLoss: expected an output [batch, h, 5 * series], got [2, 3, 4]; give the model "
            "outputsize_multiplier 5");
  EXPECT_EQ(message_of<c10::Error>([&] {
              mq->training_loss(torch::zeros({2, 4, 5}), y);
            }),
            "MQLoss: expected y [batch, h, series] and y_hat [batch, h, series, outputs], got "
            "[2, 3, 1] and [2, 4, 1, 5]");
  const auto mae = make_loss("MAE", LossOptions().horizon_weight({1.0}));
  EXPECT_EQ(message_of<c10::Error>([&] { mae->training_loss(y, y); }),
            "MAE: expected one horizon_weight for each of the 3 steps, got 1");
  EXPECT_EQ(message_of<c10::Error>([&] {
              mae->training_loss(y, y, {}, torch::zeros({2, 3}));
            }),
            "MAE: expected a mask of y's shape [2, 3, 1], got [2, 3]");
  EXPECT_EQ(message_of<c10::Error>([&] { mae->training_loss(y, y.to(at::kDouble)); }),
            "MAE: expected y and the forecast both float32 or both float64, got Double and Float");
}

TEST(Losses, RejectValuesOutsideTheDistributionsRange) {
  const at::Tensor output = torch::zeros({1, 2, 1});
  const at::Tensor y = at::tensor({-1.0F, 2.0F}).view({1, 2, 1});
  EXPECT_EQ(message_of<c10::Error>([&] { make_loss("Poisson")->training_loss(output, y); }),
            "DistributionLoss(Poisson): expected every y that is not masked to be at least 0, got "
            "-1 to 2");
  EXPECT_EQ(message_of<c10::Error>([&] { make_loss("Bernoulli")->training_loss(output, y); }),
            "DistributionLoss(Bernoulli): expected every y that is not masked to be 0 or 1, got "
            "-1 to 2");
  const at::Tensor mask = at::tensor({0.0F, 1.0F}).view({1, 2, 1});
  EXPECT_EQ(
      message_of<c10::Error>([&] { make_loss("Poisson")->training_loss(output, y, {}, mask); }),
      "no exception");
  const WindowScaling scaling{.loc = at::full({1, 1, 1}, -5.0F), .scale = at::ones({1, 1, 1})};
  EXPECT_EQ(
      message_of<c10::Error>([&] {
        make_loss("NegativeBinomial")->training_loss(torch::zeros({1, 2, 2}), y.abs(), scaling);
      }).substr(0, 71),
      "DistributionLoss(NegativeBinomial): expected probabilities in [0, 1), g");
}

}  // namespace
}  // namespace flash::tests
