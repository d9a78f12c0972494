#pragma once
// Private to ops/: the options of attention as one list. The schemas, the conversion to and from
// the arguments of an operator, and what autograd saves follow from it. A new option takes its
// TORCH_ARG in AttentionOptions (flash_attention/ops.h) and its line here.

#include <ATen/core/Tensor.h>
#include <c10/util/OptionalArrayRef.h>
#include <flash_attention/ops.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>

// Type in the schema, name, default in the schema. The order is that of the schemas, and the names
// are those of AttentionOptions, or this does not compile.
// clang-format off
#define FLASH_ATTENTION_OPTIONS(OPTION)       \
  OPTION("Tensor?", bias, "None"),            \
  OPTION("bool", causal, "False"),            \
  OPTION("Tensor?", query_positions, "None"), \
  OPTION("int[2]?", window, "None"),          \
  OPTION("Tensor?", alibi_slopes, "None"),    \
  OPTION("float", softcap, "0.0"),            \
  OPTION("Tensor?", sinks, "None"),           \
  OPTION("float?", scale, "None"),            \
  OPTION("float", dropout, "0.0")
// These change how the kernels compute, not what: standard_attention does not take them.
#define FLASH_KERNEL_OPTIONS(OPTION) \
  OPTION("int", block_size, "64"),   \
  OPTION("bool", use_simd, "True")
// clang-format on

namespace flash {

#define FLASH_REFERENCE(type, name, value) options.name()
/// References to the options in the order of the list: all of them, or those of
/// FLASH_ATTENTION_OPTIONS.
template <class Options>
auto all_options(Options& options) {
  return std::tie(FLASH_ATTENTION_OPTIONS(FLASH_REFERENCE), FLASH_KERNEL_OPTIONS(FLASH_REFERENCE));
}
template <class Options>
auto score_options(Options& options) {
  return std::tie(FLASH_ATTENTION_OPTIONS(FLASH_REFERENCE));
}
#undef FLASH_REFERENCE

/// "Tensor? bias=None, bool causal=False, ..." for keyword arguments with defaults, or
/// "Tensor? bias, bool causal, ..." for required ones.
enum class SchemaDefaults { kWith, kWithout };
std::string all_options_schema(SchemaDefaults defaults);
std::string score_options_schema();

template <class...>
struct Types {};

/// How the dispatcher passes an option of type T.
template <class T>
struct OptionArgument {
  using Type = T;
};
template <>
struct OptionArgument<std::optional<at::Tensor>> {
  using Type = const std::optional<at::Tensor>&;
};
template <>
struct OptionArgument<Window> {
  using Type = at::OptionalIntArrayRef;
};
template <class... Options>
Types<typename OptionArgument<Options>::Type...> arguments_of(std::tuple<Options&...>);
using AllOptionArguments = decltype(arguments_of(all_options(std::declval<AttentionOptions&>())));
using ScoreOptionArguments =
    decltype(arguments_of(score_options(std::declval<AttentionOptions&>())));

template <class T>
void assign_option(T& option, const T& argument) {
  option = argument;
}
/// No argument leaves the window unbounded. Throws c10::ValueError unless it is two numbers.
void assign_option(Window& window, at::OptionalIntArrayRef argument);

/// The options from the arguments of an operator: all of them, or those of `score_options`.
template <class... Arguments>
AttentionOptions options_from_arguments(const Arguments&... arguments) {
  AttentionOptions options;
  const auto references = all_options(options);
  const auto assign_each = [&]<size_t... i>(std::index_sequence<i...>) {
    (assign_option(std::get<i>(references), arguments), ...);
  };
  assign_each(std::index_sequence_for<Arguments...>());
  return options;
}

template <class T>
const T& option_argument(const T& option) {
  return option;
}
inline std::array<int64_t, 2> option_argument(const Window& window) {
  return {window.left, window.right};
}

/// f(arguments...) with each option as the dispatcher takes it.
template <class F>
decltype(auto) call_with_options(const AttentionOptions& options, F&& f) {
  return std::apply([&](const auto&... option) { return f(option_argument(option)...); },
                    all_options(options));
}

/// Calls visit(option) for each option.
template <class Options, class Visitor>
void for_each_option(Options& options, Visitor&& visit) {
  std::apply([&](auto&... option) { (visit(option), ...); }, all_options(options));
}

template <class Option>
constexpr bool kIsTensor = std::is_same_v<std::remove_cvref_t<Option>, std::optional<at::Tensor>>;

/// Calls visit(option) for each option that is a std::optional<at::Tensor>.
template <class Options, class Visitor>
void for_each_tensor(Options& options, Visitor&& visit) {
  for_each_option(options, [&](auto& option) {
    if constexpr (kIsTensor<decltype(option)>) visit(option);
  });
}

template <class... Options>
constexpr size_t count_tensors(Types<Options...>) {
  return (size_t{kIsTensor<Options>} + ...);
}
constexpr size_t kTensorOptions = count_tensors(AllOptionArguments());

/// The factor on the scores: 1 / sqrt(head_dim) unless given. With a head_dim of 0 every score is
/// 0, and any finite factor will do.
double resolve_scale(std::optional<double> scale, int64_t head_dim);

/// The options that attention is differentiable in: bias, alibi_slopes, sinks.
inline std::array<std::optional<at::Tensor>*, 3> differentiable_options(AttentionOptions& o) {
  return {&o.bias(), &o.alibi_slopes(), &o.sinks()};
}

}  // namespace flash
