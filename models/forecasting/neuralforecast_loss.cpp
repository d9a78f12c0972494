#include "forecasting/neuralforecast_loss.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <charconv>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include "message_text.h"
#include "storage/json_text.h"

namespace flash::models {
namespace {

using Json = nlohmann::json;

template <class Value>
void read_argument(const Json& arguments, const char* name, Value& value) {
  const auto found = arguments.find(name);
  if (found != arguments.end() && !found->is_null()) found->get_to(value);
}

std::string names_of_losses() {
  std::string names;
  for (const std::string& name : loss_names()) names += (names.empty() ? "" : ", ") + name;
  return names;
}

/// The outputs that the loss had when it was saved; empty if they are not stored.
std::vector<std::string> stored_output_names(const Json& loss) {
  std::vector<std::string> names;
  read_argument(loss.value("state", Json::object()), "output_names", names);
  return names;
}

/// The levels in outputs of the names "-lo-90", "-lo-80", ...
std::vector<double> levels_in(const std::vector<std::string>& outputs) {
  constexpr std::string_view kLow = "-lo-";
  std::vector<double> levels;
  for (const std::string& name : outputs) {
    if (!name.starts_with(kLow)) continue;
    double level = 0.0;
    const char* const end = name.data() + name.size();
    const auto parsed = std::from_chars(name.data() + kLow.size(), end, level);
    if (parsed.ec != std::errc() || parsed.ptr != end) return {};
    levels.push_back(level);
  }
  return levels;
}

}  // namespace

std::shared_ptr<Loss> neuralforecast_loss(const Json& hyper_parameters) {
  const Json loss = hyper_parameters.value("loss", Json());
  if (loss.is_null()) return make_loss("MAE");
  try {
    TORCH_CHECK_VALUE(loss.at("__nf__") == "loss",
                      "Forecaster: expected a loss of neuralforecast, "
                      "got ",
                      json_excerpt(loss));
    const auto name = loss.at("cls").get<std::string>();
    const auto& known = loss_names();
    TORCH_CHECK_VALUE(std::find(known.begin(), known.end(), name) != known.end(),
                      "Forecaster: expected a model with one of the losses ", names_of_losses(),
                      ", got ", excerpt(name));
    const Json& arguments = loss.at("args");
    LossOptions options;
    read_argument(arguments, "level", options.level());
    read_argument(arguments, "quantiles", options.quantiles());
    read_argument(arguments, "q", options.q());
    read_argument(arguments, "delta", options.delta());
    read_argument(arguments, "distribution", options.distribution());
    read_argument(arguments, "return_params", options.return_params());
    const std::shared_ptr<Loss> made = make_loss(name, options);
    const std::vector<std::string> outputs = stored_output_names(loss);
    if (outputs.empty() || outputs == made->output_names()) return made;
    // A file that neuralforecast has converted from an older one gives quantiles for levels.
    options.level(levels_in(outputs)).quantiles({});
    if (options.level().empty()) return made;
    const std::shared_ptr<Loss> of_levels = make_loss(name, options);
    return outputs == of_levels->output_names() ? of_levels : made;
  } catch (const Json::exception& error) {
    TORCH_CHECK_VALUE(false, "Forecaster: expected the loss as neuralforecast writes it, got ",
                      json_excerpt(loss), ": ", excerpt(error.what()));
  }
}

}  // namespace flash::models
