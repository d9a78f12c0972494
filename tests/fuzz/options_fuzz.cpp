// Fuzzes options in JSON: the first line names a model class, the rest is the JSON text.

#include <flash_attention/models/checkpoint.h>
#include <torch/nn/module.h>

#include "model_factory.h"
#include "refusal.h"
#include "storage/json_options.h"
#include "storage/json_text.h"

namespace {

using flash::fuzz::accepted;
using flash::fuzz::require;
using flash::models::JsonOptionReader;
using flash::models::JsonOptionWriter;

/// Options of every type.
struct Options {
  int64_t h = 0, hidden_size = 128;
  double dropout = 0.1;
  bool revin = true;
  std::string activation = "gelu";
  std::vector<std::string> futr_exog_list;
  std::map<std::string, std::vector<int64_t>> fourier_index;

  bool operator==(const Options&) const = default;
};

template <class Visitor>
void visit_options(Options& options, Visitor& visitor) {
  visitor.visit("h", options.h);
  visitor.visit("hidden_size", options.hidden_size);
  visitor.visit("dropout", options.dropout);
  visitor.visit("revin", options.revin);
  visitor.visit("activation", options.activation);
  visitor.visit("futr_exog_list", options.futr_exog_list);
  visitor.visit_extension("fourier_index", options.fourier_index);
}

Options read(const std::string& text) {
  const nlohmann::json given = flash::models::parse_options(text, "fuzz");
  JsonOptionReader reader("fuzz", given);
  Options options;
  visit_options(options, reader);
  accepted([&] { reader.refuse_unknown(); });
  return options;
}

/// Writing and reading the options again must give the same options.
void check_round_trip(Options options) {
  JsonOptionWriter writer;
  visit_options(options, writer);
  writer.options.update(writer.ours);
  require(read(writer.options.dump()) == options, "the same options after writing them");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string input(reinterpret_cast<const char*>(data), size);
  const size_t end = std::min(input.find('\n'), input.size());
  const std::string model_class = input.substr(0, end);
  const std::string text = input.substr(std::min(end + 1, input.size()));
  Options options;
  if (accepted([&] { options = read(text); })) check_round_trip(options);
  // Models within the small limit are built in milliseconds; larger ones are refused.
  accepted([&] {
    flash::models::make_model(
        model_class, text,
        flash::models::FactorySettings{.outputsize_multiplier = 1,
                                       .config = {},
                                       .refuse_unknown = true,
                                       .limit = {.bytes = 1e6, .reason = "the fuzzer's limit"}});
  });
  return 0;
}
