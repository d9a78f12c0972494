#include "ops/options.h"

#include <c10/util/Exception.h>

#include <cmath>

namespace flash {
namespace {

struct OptionSchema {
  const char *type, *name, *value;
};

#define FLASH_SCHEMA(type, name, value) \
  OptionSchema { type, #name, value }
constexpr std::array kScoreOptions = {FLASH_ATTENTION_OPTIONS(FLASH_SCHEMA)};
constexpr std::array kKernelOptions = {FLASH_KERNEL_OPTIONS(FLASH_SCHEMA)};
#undef FLASH_SCHEMA

template <size_t kCount>
std::string join_schema(const std::array<OptionSchema, kCount>& options, SchemaDefaults defaults) {
  std::string text;
  for (const OptionSchema& option : options) {
    if (!text.empty()) text += ", ";
    text += option.type;
    text += ' ';
    text += option.name;
    if (defaults == SchemaDefaults::kWith) text += std::string("=") + option.value;
  }
  return text;
}

}  // namespace

std::string score_options_schema() { return join_schema(kScoreOptions, SchemaDefaults::kWith); }

std::string all_options_schema(SchemaDefaults defaults) {
  return join_schema(kScoreOptions, defaults) + ", " + join_schema(kKernelOptions, defaults);
}

void assign_option(Window& window, at::OptionalIntArrayRef argument) {
  if (!argument.has_value()) return;
  TORCH_CHECK_VALUE(argument->size() == 2,
                    "flash::attention: expected window as two numbers, (left, right), got ",
                    *argument, "; pass -1 for no bound");
  window = {(*argument)[0], (*argument)[1]};
}

double resolve_scale(std::optional<double> scale, int64_t head_dim) {
  if (scale.has_value()) return *scale;
  return head_dim == 0 ? 1.0 : 1.0 / std::sqrt(static_cast<double>(head_dim));
}

}  // namespace flash
