#pragma once
// Private to ops/: how a C++ function of AttentionOptions becomes a kernel of the dispatcher, which
// takes each option as an argument of its own, and how an operator is looked up.

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <tuple>

#include "ops/options.h"

namespace flash {

/// An operator whose C++ functions take `Before..., const AttentionOptions&, After...`.
template <class Result, class Before, class Options, class After>
struct Operator;
template <class Result, class... Before, class... Options, class... After>
struct Operator<Result, Types<Before...>, Types<Options...>, Types<After...>> {
  using Signature = Result(Before..., Options..., After...);

  /// `kFunction` with the signature that the dispatcher calls.
  template <Result (*kFunction)(Before..., const AttentionOptions&, After...)>
  static Result kernel(Before... before, Options... options, After... after) {
    return kFunction(before..., options_from_arguments(options...), after...);
  }

  /// The registered operator with this name.
  static c10::TypedOperatorHandle<Signature> find(const char* name) {
    return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
  }
};

/// attention, attention_with_lse and _forward: query, key, value; options.
template <class Result>
using AttentionOperator =
    Operator<Result, Types<const at::Tensor&, const at::Tensor&, const at::Tensor&>,
             AllOptionArguments, Types<>>;

/// flash::attention_with_lse: out, lse.
using LseResult = std::tuple<at::Tensor, at::Tensor>;

}  // namespace flash
