#include <flash_attention/models/autoformer.h>
#include <flash_attention/models/fedformer.h>
#include <flash_attention/models/informer.h>
#include <flash_attention/models/itransformer.h>
#include <flash_attention/models/patchtst.h>
#include <flash_attention/models/registry.h>
#include <flash_attention/models/tft.h>
#include <torch/torch.h>

#include "json_text.h"
#include "message_text.h"
#include "model_factory.h"

namespace flash::models {
namespace {

using Reader = JsonOptionReader;
using Settings = FactorySettings;
using Model = std::shared_ptr<ForecastModel>;

struct ModelClass {
  const char* name;
  Model (*make)(Reader&, const Settings&);
};

// The zeros stand for options without a default, which the reader insists on.
constexpr ModelClass kModelClasses[] = {
    {"Autoformer",
     [](Reader& reader, const Settings& settings) -> Model {
       return read_and_make<AutoformerImpl>(AutoformerOptions(0, 0), reader, settings);
     }},
    {"FEDformer",
     [](Reader& reader, const Settings& settings) -> Model {
       return read_and_make<FEDformerImpl>(FEDformerOptions(0, 0), reader, settings);
     }},
    {"Informer",
     [](Reader& reader, const Settings& settings) -> Model {
       return read_and_make<InformerImpl>(InformerOptions(0, 0), reader, settings);
     }},
    {"PatchTST",
     [](Reader& reader, const Settings& settings) -> Model {
       return read_and_make<PatchTSTImpl>(PatchTSTOptions(0, 0), reader, settings);
     }},
    {"TFT",
     [](Reader& reader, const Settings& settings) -> Model {
       return read_and_make<TFTImpl>(TFTOptions(0, 0), reader, settings);
     }},
    {"iTransformer",
     [](Reader& reader, const Settings& settings) -> Model {
       return read_and_make<ITransformerImpl>(ITransformerOptions(0, 0, 0), reader, settings);
     }},
};

}  // namespace

const std::vector<std::string>& model_classes() {
  static const auto* const names = [] {
    auto* list = new std::vector<std::string>;
    for (const ModelClass& model : kModelClasses) list->emplace_back(model.name);
    return list;
  }();
  return *names;
}

std::shared_ptr<ForecastModel> make_model(const std::string& model_class, Reader& reader,
                                          const Settings& settings) {
  for (const ModelClass& model : kModelClasses) {
    if (model_class == model.name) return model.make(reader, settings);
  }
  std::string names;
  for (const std::string& name : model_classes()) names += (names.empty() ? "" : ", ") + name;
  TORCH_CHECK_VALUE(false, "make_model: expected a model class among ", names, ", got \"",
                    excerpt(model_class), "\"");
}

std::shared_ptr<ForecastModel> make_model(const std::string& model_class,
                                          const std::string& options, const Settings& settings) {
  const nlohmann::json given = parse_options(options, model_class);
  Reader reader(model_class, given);
  return make_model(model_class, reader, settings);
}

std::shared_ptr<ForecastModel> make_model(const std::string& model_class,
                                          const std::string& options, int64_t outputsize_multiplier,
                                          const ModelConfig& config) {
  return make_model(model_class, options,
                    Settings{.outputsize_multiplier = outputsize_multiplier,
                             .config = config,
                             .refuse_unknown = true,
                             .limit = limit_of_machine()});
}

}  // namespace flash::models
