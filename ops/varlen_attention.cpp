// Packed sequences: the schemas, the preconditions, and every dispatch key except CPU.

#include <ATen/ATen.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/functorch/DynamicLayer.h>
#include <flash_attention/varlen_attention.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/library.h>

#include <string>
#include <vector>

#include "ops/autocast_inputs.h"
#include "ops/backward_checks.h"
#include "ops/dtypes.h"
#include "ops/results.h"
#include "ops/storage_checks.h"
#include "ops/unsupported_derivative.h"
#include "ops/varlen.h"

namespace flash {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr char kNotImplemented[] =
    "which is not implemented; call flash::attention for each sequence";

Tensor call(const Packed& p, const AttentionOptions& options) {
  static const auto op = VarlenOperator<Tensor>::find("flash::varlen_attention");
  return call_with_options(options, [&](const auto&... each) {
    return op.call(p.query, p.key, p.value, p.cu_seqlens_q, p.cu_seqlens_k, each...);
  });
}

void check_device(const char* name, const Tensor& t, const Tensor& query) {
  TORCH_CHECK_VALUE(t.device() == query.device(), kVarlenOp, ": expected ", name,
                    " on the device of query, ", query.device(), ", got it on ", t.device());
}

void check_offsets(const char* name, const Tensor& offsets, const Tensor& query) {
  TORCH_CHECK_TYPE(offsets.scalar_type() == at::kInt || offsets.scalar_type() == at::kLong,
                   kVarlenOp, ": expected ", name, " of dtype int32 or int64, got ",
                   offsets.scalar_type());
  TORCH_CHECK_VALUE(offsets.dim() == 1, kVarlenOp, ": expected ", name,
                    " [sequences + 1], where each begins and the last one ends, got ",
                    offsets.sym_sizes());
  check_device(name, offsets, query);
}

void check_per_head(const char* name, const std::optional<Tensor>& option, const Tensor& query,
                    const Tensor& offsets) {
  if (!option.has_value()) return;
  const auto heads = query.sym_size(1), sequences = offsets.sym_size(0) - 1;
  const bool fits =
      (option->dim() == 1 && option->sym_size(0) == heads) ||
      (option->dim() == 2 && option->sym_size(0) == sequences && option->sym_size(1) == heads);
  TORCH_CHECK_VALUE(fits, kVarlenOp, ": expected ", name, " of shape [heads] = [", heads,
                    "] or [sequences, heads] = [", sequences, ", ", heads, "], got ",
                    option->sym_sizes());
  TORCH_CHECK_TYPE(is_option_dtype(query, *option), kVarlenOp, ": expected ", name, " of dtype ",
                   option_dtypes(query), " got ", option->scalar_type());
  check_device(name, *option, query);
}

VarlenForward forward_meta(const Tensor& query, const Tensor& key, const Tensor& value,
                           const Tensor& cu_seqlens_q, const Tensor& cu_seqlens_k,
                           const AttentionOptions& o) {
  check_packed({query, key, value, cu_seqlens_q, cu_seqlens_k}, o);
  const at::ScalarType dtype = compute_dtype(query.scalar_type());
  return {allocate({query.sym_size(0), query.sym_size(1), value.sym_size(2)}, query, dtype),
          allocate({2, query.sym_size(0) * query.sym_size(1)}, query, dtype),
          empty_seed(query, o.dropout())};
}

Tensor output_meta(const Tensor& query, const Tensor& key, const Tensor& value,
                   const Tensor& cu_seqlens_q, const Tensor& cu_seqlens_k,
                   const AttentionOptions& o) {
  return in_dtype(std::get<0>(forward_meta(query, key, value, cu_seqlens_q, cu_seqlens_k, o)),
                  query.scalar_type());
}

VarlenBackward backward_meta(const Tensor& grad_out, const Tensor& query, const Tensor& key,
                             const Tensor& value, const Tensor& cu_seqlens_q,
                             const Tensor& cu_seqlens_k, const Tensor& out, const Tensor& row_stats,
                             const Tensor& seed, const AttentionOptions& o, VarlenNeeded needed) {
  check_packed_backward(grad_out, {query, key, value, cu_seqlens_q, cu_seqlens_k},
                        {out, row_stats, seed}, o, needed, Gradients::kTraced);
  const auto like = [&](size_t i, const std::optional<Tensor>& input) {
    return needed[i] ? allocate(input->sym_sizes(), *input) : allocate({0}, query);
  };
  return {like(0, query), like(1, key), like(2, value), like(3, o.alibi_slopes()),
          like(4, o.sinks())};
}

/// The options of a recorded call without their tensors, for `saved_data`.
struct OptionsHolder : torch::CustomClassHolder {
  explicit OptionsHolder(AttentionOptions o) : options(std::move(o)) {
    options.alibi_slopes().reset();
    options.sinks().reset();
  }
  AttentionOptions options;
};

class VarlenFunction : public torch::autograd::Function<VarlenFunction> {
 public:
  // The tensors among the options are arguments of their own: autograd does not look into a struct.
  static Tensor forward(AutogradContext* context, const Tensor& query, const Tensor& key,
                        const Tensor& value, const Tensor& cu_seqlens_q, const Tensor& cu_seqlens_k,
                        const std::optional<Tensor>& alibi_slopes,
                        const std::optional<Tensor>& sinks, const AttentionOptions& options) {
    const at::AutoDispatchBelowADInplaceOrView below;
    static const auto op = VarlenOperator<VarlenForward>::find("flash::_varlen_forward");
    const auto [out, row_stats, seed] = call_with_options(options, [&](const auto&... each) {
      return op.call(query, key, value, cu_seqlens_q, cu_seqlens_k, each...);
    });
    context->save_for_backward({query, key, value, cu_seqlens_q, cu_seqlens_k,
                                alibi_slopes.value_or(Tensor()), sinks.value_or(Tensor()), out,
                                row_stats, seed});
    const Tensor result = in_dtype(out, query.scalar_type());
    context->saved_data["options"] =
        c10::IValue::make_capsule(c10::make_intrusive<OptionsHolder>(options));
    return result;
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const variable_list saved = context->get_saved_variables();
    AttentionOptions options =
        static_cast<const OptionsHolder&>(*context->saved_data["options"].toCapsule()).options;
    if (saved[5].defined()) options.alibi_slopes() = saved[5];
    if (saved[6].defined()) options.sinks() = saved[6];
    // By position among the inputs. The offsets have no gradient.
    const VarlenNeeded needed = {context->needs_input_grad(0), context->needs_input_grad(1),
                                 context->needs_input_grad(2),
                                 saved[5].defined() && saved[5].requires_grad(),
                                 saved[6].defined() && saved[6].requires_grad()};
    static const auto op = VarlenBackwardOperator::find("flash::_varlen_backward");
    VarlenBackward found;
    {
      const at::AutoDispatchBelowADInplaceOrView below;
      found = call_with_options(options, [&](const auto&... each) {
        return op.call(gradients[0], saved[0], saved[1], saved[2], saved[3], saved[4], saved[7],
                       saved[8], saved[9], each..., needed);
      });
    }
    const auto& [of_query, of_key, of_value, of_slopes, of_sinks] = found;
    variable_list result = {of_query, of_key,    of_value, Tensor(),
                            Tensor(), of_slopes, of_sinks, Tensor()};
    for (size_t i = 0, at = 0; i < needed.size(); ++i, ++at) {
      if (at == 3) at = 5;  // skip the offsets
      if (!needed[i]) result[at] = Tensor();
    }
    UnsupportedDerivative::attach(
        "flash::varlen_attention: expected a first derivative, got a request for a second one; "
        "call flash::attention for each sequence, which has two",
        {gradients[0], saved[0], saved[1], saved[2], saved[5], saved[6]}, result);
    return result;
  }
};

bool has_tangent(const std::optional<Tensor>& t) {
  return t.has_value() && t->_fw_grad(/*level=*/0).defined();
}

Tensor varlen_autograd(const Tensor& query, const Tensor& key, const Tensor& value,
                       const Tensor& cu_seqlens_q, const Tensor& cu_seqlens_k,
                       const AttentionOptions& o) {
  TORCH_CHECK_NOT_IMPLEMENTED(!has_tangent(query) && !has_tangent(key) && !has_tangent(value) &&
                                  !has_tangent(o.alibi_slopes()) && !has_tangent(o.sinks()),
                              kVarlenOp, ": expected tensors without tangents, got forward mode, ",
                              kNotImplemented);
  if (at::GradMode::is_enabled() &&
      torch::autograd::compute_requires_grad(query, key, value, o.alibi_slopes(), o.sinks())) {
    TORCH_CHECK_NOT_IMPLEMENTED(!at::functorch::maybeCurrentDynamicLayer().has_value(), kVarlenOp,
                                ": expected torch.autograd, got a transform of torch.func, ",
                                kNotImplemented);
    return VarlenFunction::apply(query, key, value, cu_seqlens_q, cu_seqlens_k, o.alibi_slopes(),
                                 o.sinks(), o);
  }
  const at::AutoDispatchBelowADInplaceOrView below;
  return call({query, key, value, cu_seqlens_q, cu_seqlens_k}, o);
}

// Without this, torch would warn and call the operator in a loop.
void refuse_vmap(const c10::OperatorHandle& op, torch::jit::Stack*) {
  TORCH_CHECK_NOT_IMPLEMENTED(false, op.schema().name(),
                              ": expected tensors that are not mapped, got torch.vmap, ",
                              kNotImplemented);
}

Tensor varlen_autocast(const Tensor& query, const Tensor& key, const Tensor& value,
                       const Tensor& cu_seqlens_q, const Tensor& cu_seqlens_k,
                       const AttentionOptions& o) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::DispatchKey::AutocastCPU);
  const AutocastInputs inputs(query, key, value, o);
  return call({inputs.query, inputs.key, inputs.value, cu_seqlens_q, cu_seqlens_k}, inputs.options);
}

}  // namespace

void check_packed(const Packed& p, const AttentionOptions& options) {
  const auto& [query, key, value, cu_seqlens_q, cu_seqlens_k] = p;
  check_storage(
      {query, key, value, cu_seqlens_q, cu_seqlens_k, options.alibi_slopes(), options.sinks()});
  TORCH_CHECK_NOT_IMPLEMENTED(
      !options.bias().has_value() && !options.query_positions().has_value(), kVarlenOp,
      ": expected neither bias nor query_positions, which packed sequences have no place for; call "
      "flash::attention for each sequence");
  for (const auto& [name, rows] : {std::pair<const char*, const Tensor&>("query", query),
                                   std::pair<const char*, const Tensor&>("key", key),
                                   std::pair<const char*, const Tensor&>("value", value)}) {
    TORCH_CHECK_VALUE(rows.dim() == 3, kVarlenOp, ": expected ", name,
                      " [rows of all sequences, heads, width], got ", rows.sym_sizes());
  }
  AttentionOptions o = options;
  o.alibi_slopes().reset(), o.sinks().reset();
  check_attention(as_heads(query), as_heads(key), as_heads(value), o);
  check_offsets("cu_seqlens_q", cu_seqlens_q, query);
  check_offsets("cu_seqlens_k", cu_seqlens_k, query);
  TORCH_CHECK_VALUE(
      cu_seqlens_q.sym_size(0) == cu_seqlens_k.sym_size(0) && cu_seqlens_q.sym_size(0) >= 1,
      kVarlenOp, ": expected cu_seqlens_q and cu_seqlens_k of one number of sequences, got ",
      cu_seqlens_q.sym_sizes(), " and ", cu_seqlens_k.sym_sizes());
  check_per_head("alibi_slopes", options.alibi_slopes(), query, cu_seqlens_q);
  check_per_head("sinks", options.sinks(), query, cu_seqlens_q);
}

Tensor varlen_attention(const Tensor& query, const Tensor& key, const Tensor& value,
                        const Tensor& cu_seqlens_q, const Tensor& cu_seqlens_k,
                        const AttentionOptions& options) {
  return call({query, key, value, cu_seqlens_q, cu_seqlens_k}, options);
}

}  // namespace flash

TORCH_LIBRARY_FRAGMENT(flash, m) {
  const std::string inputs =
      "Tensor query, Tensor key, Tensor value, Tensor cu_seqlens_q, Tensor cu_seqlens_k, ";
  const std::vector<at::Tag> random = {at::Tag::pt2_compliant_tag,
                                       at::Tag::nondeterministic_seeded};
  const std::string options = flash::all_options_schema(flash::SchemaDefaults::kWith);
  const auto define = [&](const std::string& name, const std::string& results) {
    m.def((name + "(" + inputs + "*, " + options + ") -> " + results).c_str(), random);
  };
  define("varlen_attention", "Tensor");
  define("_varlen_forward", "(Tensor out, Tensor row_stats, Tensor seed)");
  m.def(("_varlen_backward(Tensor grad_out, " + inputs +
         "Tensor out, Tensor row_stats, Tensor seed, " +
         flash::all_options_schema(flash::SchemaDefaults::kWithout) +
         ", bool[5] needed) -> (Tensor, Tensor, Tensor, Tensor, Tensor)")
            .c_str(),
        {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(flash, Meta, m) {
  using namespace flash;
  m.impl("varlen_attention", VarlenOperator<at::Tensor>::kernel<output_meta>);
  m.impl("_varlen_forward", VarlenOperator<VarlenForward>::kernel<forward_meta>);
  m.impl("_varlen_backward", VarlenBackwardOperator::kernel<backward_meta>);
}

TORCH_LIBRARY_IMPL(flash, Autograd, m) {
  m.impl("varlen_attention", flash::VarlenOperator<at::Tensor>::kernel<flash::varlen_autograd>);
}

TORCH_LIBRARY_IMPL(flash, FuncTorchBatched, m) {
  for (const char* name : {"varlen_attention", "_varlen_forward", "_varlen_backward"}) {
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&flash::refuse_vmap>());
  }
}

TORCH_LIBRARY_IMPL(flash, AutocastCPU, m) {
  m.impl("varlen_attention", flash::VarlenOperator<at::Tensor>::kernel<flash::varlen_autocast>);
}
