#include <flash_attention/models/autoformer.h>
#include <flash_attention/models/fedformer.h>
#include <flash_attention/models/informer.h>
#include <flash_attention/models/itransformer.h>
#include <flash_attention/models/patchtst.h>
#include <flash_attention/models/registry.h>
#include <flash_attention/models/tft.h>
#include <torch/torch.h>

#include <algorithm>
#include <iterator>

#include "message_text.h"
#include "model_factory.h"
#include "storage/json_text.h"

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

const ModelClass& find_class(const std::string& name) {
  const auto* found = std::find_if(std::begin(kModelClasses), std::end(kModelClasses),
                                   [&](const ModelClass& one) { return name == one.name; });
  if (found != std::end(kModelClasses)) return *found;
  std::string names;
  for (const std::string& one : model_classes()) names += (names.empty() ? "" : ", ") + one;
  TORCH_CHECK_VALUE(false, "make_model: expected a model class among ", names, ", got \"",
                    excerpt(name), "\"");
}

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
  return find_class(model_class).make(reader, settings);
}

std::shared_ptr<ForecastModel> make_model(const std::string& model_class,
                                          const std::string& options, const Settings& settings) {
  const ModelClass& found = find_class(model_class);
  const nlohmann::json given = parse_options(options, found.name);
  Reader reader(found.name, given);
  return found.make(reader, settings);
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
