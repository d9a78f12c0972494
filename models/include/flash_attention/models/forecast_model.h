#pragma once
// The interface of the six models.

#include <flash_attention/export.h>
#include <flash_attention/models/windows_batch.h>

#include <cstdint>
#include <map>
#include <string>

namespace torch::nn {
class Module;
}

namespace flash::models {

class OptionVisitor;

/// The interface of TFTImpl, InformerImpl, AutoformerImpl, FEDformerImpl, PatchTSTImpl and
/// ITransformerImpl, for code that takes any of them. Each is a torch::nn::Module as well.
class FLASH_API ForecastModel {
 public:
  virtual ~ForecastModel() = default;

  /// neuralforecast's raw output: [B, h, outputs], or [B, h, outputs * N] for iTransformer. Throws
  /// c10::ValueError on a missing, unexpected or misshapen tensor.
  virtual at::Tensor forward(const WindowsBatch& windows) = 0;
  /// A batch with the series only.
  at::Tensor forward(const at::Tensor& insample_y) {
    return forward(WindowsBatch{.insample_y = insample_y});
  }

  /// neuralforecast's name of the class: "TFT", "Informer", ...
  virtual std::string model_class() const = 0;
  /// Visits every option that neuralforecast has too, under its name.
  virtual void visit_options(OptionVisitor& visitor) = 0;
  /// Outputs per step and series, as many as the loss needs.
  virtual int64_t outputsize_multiplier() const = 0;

  /// Parameters that neuralforecast's state_dict() lists under several names. Maps each additional
  /// name to the one in named_parameters().
  virtual std::map<std::string, std::string> tied_parameters() const { return {}; }

  virtual torch::nn::Module& module() = 0;
};

}  // namespace flash::models
