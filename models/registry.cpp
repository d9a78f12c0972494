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
#include <type_traits>
#include <utility>

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

/// Options without a default are 0 here; the reader requires them.
template <class Options>
Options default_options() {
  if constexpr (std::is_constructible_v<Options, int64_t, int64_t>) {
    return Options(0, 0);
  } else {
    return Options(0, 0, 0);
  }
}

template <class Impl>
Model read_and_make(Reader& reader, const Settings& settings) {
  auto options = default_options<typename Impl::Options>();
  visit_options(options, reader);
  if (settings.refuse_unknown) reader.refuse_unknown();
  options.outputsize_multiplier(settings.outputsize_multiplier).config(settings.config);
  check_size(reader.context(), model_size(options), settings.limit);
  return std::make_shared<Impl>(std::move(options));
}

template <class Impl>
constexpr ModelClass model_class() {
  return {Impl::Options::kModelClass, read_and_make<Impl>};
}

constexpr ModelClass kModelClasses[] = {
    model_class<AutoformerImpl>(), model_class<FEDformerImpl>(), model_class<InformerImpl>(),
    model_class<PatchTSTImpl>(),   model_class<TFTImpl>(),       model_class<ITransformerImpl>(),
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
