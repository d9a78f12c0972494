// The drop-in for torch's scaled_dot_product_attention, and the switch that replaces torch's.

#include <ATen/ATen.h>
#include <ATen/ExpandUtils.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/functorch/DynamicLayer.h>
#include <ATen/ops/scaled_dot_product_attention_native.h>
#include <flash_attention/ops.h>
#include <flash_attention/scaled_dot_product_attention.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "ops/dtypes.h"
#include "ops/storage_checks.h"

namespace flash {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using LeadingSizes = c10::SymDimVector;

using Signature = Tensor(const Tensor&, const Tensor&, const Tensor&, const OptionalTensor&, double,
                         bool, std::optional<double>, bool);

/// The sizes of the dimensions before the last three.
LeadingSizes leading(const Tensor& t) {
  const auto sizes = t.sym_sizes();
  return sizes.size() > 3 ? LeadingSizes(sizes.begin(), sizes.end() - 3) : LeadingSizes();
}

/// `lead` broadcast with the leading sizes of `t`.
LeadingSizes broadcast_leading(const char* name, LeadingSizes lead, const Tensor& t) {
  const LeadingSizes own = leading(t);
  if (own.size() > lead.size()) lead.insert(lead.begin(), own.size() - lead.size(), 1);
  for (size_t i = 0; i < own.size(); ++i) {
    c10::SymInt& size = lead[lead.size() - own.size() + i];
    TORCH_CHECK_VALUE(own[i] == 1 || size == 1 || size == own[i],
                      "flash::scaled_dot_product_attention: expected the dimensions before the "
                      "heads to broadcast, got ",
                      name, " of ", t.sym_sizes(), " beside ", size);
    if (own[i] != 1) size = own[i];
  }
  return lead;
}

/// [lead.., H, L, D] -> [B, H, L, D]. Missing dimensions are inserted in front, with size 1.
Tensor as_4d(Tensor t, const LeadingSizes& lead) {
  while (t.dim() < 4) t = t.unsqueeze(0);
  if (lead.size() < 2 && t.dim() == 4 && (lead.empty() || t.sym_size(0) == lead[0])) return t;
  LeadingSizes sizes = lead;
  for (int64_t i = 3; i > 0; --i) sizes.push_back(t.sym_size(-i));
  return t.expand_symint(sizes).flatten(0, -4);
}

bool is_dense(const Tensor& t) { return t.layout() == at::kStrided && !t.is_nested(); }

void check_inputs(const Tensor& query, const Tensor& key, const Tensor& value,
                  const OptionalTensor& attn_mask) {
  TORCH_CHECK_NOT_IMPLEMENTED(is_dense(query) && is_dense(key) && is_dense(value) &&
                                  (!attn_mask.has_value() || is_dense(*attn_mask)),
                              "flash::scaled_dot_product_attention: expected dense tensors, got a "
                              "sparse or a nested one");
  TORCH_CHECK_NOT_IMPLEMENTED(
      !query.is_quantized() && !key.is_quantized() && !value.is_quantized(),
      "flash::scaled_dot_product_attention: expected floating tensors, got a quantized one; call "
      ".dequantize() on it");
  TORCH_CHECK_VALUE(query.dim() >= 2 && key.dim() >= 2 && value.dim() >= 2,
                    "flash::scaled_dot_product_attention: expected query, key and value of two or "
                    "more dimensions, got ",
                    query.sym_sizes(), ", ", key.sym_sizes(), " and ", value.sym_sizes());
  check_storage({query, key, value, attn_mask});
}

/// Throws unless the `heads` of query can share the `own` heads of key or value.
void check_heads(const char* name, const c10::SymInt& heads, const c10::SymInt& own, bool grouped) {
  const bool fits = grouped ? own != 0 && heads % own == 0 : own == heads || own == 1;
  TORCH_CHECK_VALUE(fits || heads == 0, "flash::scaled_dot_product_attention: expected ", name,
                    " of ", heads, " heads as query has, ",
                    grouped ? "or a divisor of that" : "or of 1", ", got ", own,
                    grouped ? "" : "; enable_gqa=True shares heads among groups of queries");
}

/// `mask`, which broadcasts to [lead.., H, L, S], as a bias. Dimensions of size 1 are not expanded
/// where that can be avoided, since the gradient of a bias takes as much memory as the bias.
Tensor to_bias(const Tensor& mask, at::ScalarType dtype, const LeadingSizes& lead) {
  const bool as_is = mask.scalar_type() == at::kBool || mask.scalar_type() == compute_dtype(dtype);
  const Tensor bias = as_is ? mask : mask.to(dtype);
  if (lead.size() < 2 || bias.dim() < 4) return bias;
  const LeadingSizes own = leading(bias);
  const bool is_shared = std::all_of(own.begin(), own.end(), [](const auto& n) { return n == 1; });
  return is_shared ? bias.flatten(0, -4) : as_4d(bias, lead);
}

void check_mask(const Tensor& mask, c10::SymIntArrayRef scores) {
  TORCH_CHECK_TYPE(mask.scalar_type() == at::kBool || mask.is_floating_point(),
                   "flash::scaled_dot_product_attention: expected attn_mask of dtype bool (True = "
                   "attend) or floating, got ",
                   mask.scalar_type());
  TORCH_CHECK_VALUE(at::is_expandable_to(mask.sym_sizes(), scores),
                    "flash::scaled_dot_product_attention: expected attn_mask to broadcast to ",
                    scores, ", got ", mask.sym_sizes());
}

Tensor compute(const Tensor& query, const Tensor& key, const Tensor& value,
               const OptionalTensor& attn_mask, double dropout_p, bool is_causal,
               std::optional<double> scale, bool enable_gqa) {
  // To torch, so that a model still works when it is moved to another device.
  if (query.defined() && !query.is_cpu() && !query.is_meta()) {
    return at::scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, is_causal,
                                            scale, enable_gqa);
  }
  check_inputs(query, key, value, attn_mask);
  TORCH_CHECK_VALUE(!is_causal || !attn_mask.has_value(),
                    "flash::scaled_dot_product_attention: expected attn_mask or is_causal, got "
                    "both; put the causal limit into the mask");
  LeadingSizes lead = leading(query);
  lead = broadcast_leading("key", lead, key);
  lead = broadcast_leading("value", lead, value);
  const bool broadcasts = leading(query) != lead || leading(key) != lead || leading(value) != lead;
  const at::ScalarType dtype = query.scalar_type();
  if (broadcasts && compute_dtype(dtype) != dtype) {
    // The gradient of an expanded tensor is a sum; in 16 bits each of its terms would be rounded.
    const OptionalTensor mask =
        attn_mask.has_value() ? OptionalTensor(in_compute_dtype(*attn_mask)) : attn_mask;
    return compute(in_compute_dtype(query), in_compute_dtype(key), in_compute_dtype(value), mask,
                   dropout_p, is_causal, scale, enable_gqa)
        .to(dtype);
  }
  Tensor q = as_4d(query, lead);
  const Tensor k = as_4d(key, lead), v = as_4d(value, lead);
  if (!enable_gqa && q.sym_size(1) == 1) {
    const c10::SymInt heads = k.sym_size(1) == 1 ? v.sym_size(1) : k.sym_size(1);
    q = q.expand_symint({q.sym_size(0), heads, q.sym_size(2), q.sym_size(3)});
  }
  check_heads("key", q.sym_size(1), k.sym_size(1), enable_gqa);
  check_heads("value", q.sym_size(1), v.sym_size(1), enable_gqa);

  const int64_t rank = std::max({query.dim(), key.dim(), value.dim()});
  auto options = AttentionOptions().causal(is_causal).scale(scale).dropout(dropout_p);
  if (attn_mask.has_value()) {
    LeadingSizes scores = lead;
    for (const auto& n : {q.sym_size(1), q.sym_size(2), k.sym_size(2)}) scores.push_back(n);
    const size_t missing = rank < 4 ? 3 - rank : 0;  // [L, D] has no heads
    check_mask(*attn_mask, c10::SymIntArrayRef(scores).slice(missing));
    options.bias(to_bias(*attn_mask, query.scalar_type(), lead));
  }
  // With as many queries as keys, the top-left and the bottom-right alignment are the same. In a
  // traced program with symbolic lengths, explicit positions are right in either case.
  if (is_causal && !TORCH_STATICALLY_KNOWN_TRUE(q.sym_size(2).sym_eq(k.sym_size(2)))) {
    options.query_positions(at::arange(q.sym_size(2), q.options().dtype(at::kLong)));
  }
  const Tensor out = attention(q, k, v, options);
  if (rank == 4) return out;
  if (rank == 3) return out.squeeze(0);
  if (rank == 2) return out.squeeze(0).squeeze(0);
  return out.unflatten_symint(0, lead);
}

bool is_dense_on_cpu(const Tensor& t) {
  return t.is_cpu() && is_dense(t) && !t._fw_grad(/*level=*/0).defined();
}

bool is_taken(const Tensor& t) {
  return is_dense_on_cpu(t) && (t.scalar_type() == at::kFloat || t.scalar_type() == at::kDouble ||
                                at::isReducedFloatingType(t.scalar_type()));
}

bool is_taken_mask(const Tensor& t) {
  return is_dense_on_cpu(t) && (t.scalar_type() == at::kBool || t.is_floating_point());
}

/// Counts the replacements of torch's function that are in force.
class Replacement {
 public:
  void add() {
    std::call_once(registered_, [this] { register_kernels(); });
    ++users_;
  }
  /// False if the count is already 0.
  bool remove() {
    int64_t users = users_;
    while (users > 0 && !users_.compare_exchange_weak(users, users - 1)) {
    }
    return users > 0;
  }
  bool is_in_force() const { return users_ > 0; }

 private:
  void register_kernels();

  std::once_flag registered_;
  std::atomic<int64_t> users_ = 0;
  std::vector<std::unique_ptr<torch::Library>> libraries_;
};

/// Never destroyed, since the dispatcher may be destroyed before it at the end of the process.
Replacement& replacement() {
  static auto* one = new Replacement();
  return *one;
}

Tensor compute_or_leave_to_torch(const Tensor& query, const Tensor& key, const Tensor& value,
                                 const OptionalTensor& attn_mask, double dropout_p, bool is_causal,
                                 std::optional<double> scale, bool enable_gqa) {
  // functorch cannot differentiate the operator from here.
  const bool is_transformed = at::functorch::maybeCurrentDynamicLayer().has_value();
  if (replacement().is_in_force() && !is_transformed && is_taken(query) && is_taken(key) &&
      is_taken(value) && (!attn_mask.has_value() || is_taken_mask(*attn_mask))) {
    return flash::scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, is_causal,
                                               scale, enable_gqa);
  }
  return at::native::scaled_dot_product_attention(query, key, value, attn_mask, dropout_p,
                                                  is_causal, scale, enable_gqa);
}

void replace_sdpa(bool on) {
  if (on) return replacement().add();
  TORCH_CHECK_VALUE(replacement().remove(),
                    "flash::_replace_sdpa: expected a replacement in force, got none to undo");
}

// Registered once and never removed: other threads may be in the dispatcher's table entry when one
// thread undoes its replacement.
void Replacement::register_kernels() {
  // At autograd's key, where torch's composite function would run, and at the CPU's, the only one
  // that an inference tensor has.
  for (const c10::DispatchKey key : {c10::DispatchKey::AutogradCPU, c10::DispatchKey::CPU}) {
    libraries_.push_back(
        std::make_unique<torch::Library>(torch::Library::IMPL, "aten", key, __FILE__, __LINE__));
    libraries_.back()->impl("scaled_dot_product_attention", &compute_or_leave_to_torch);
  }
}

}  // namespace

Tensor scaled_dot_product_attention(const Tensor& query, const Tensor& key, const Tensor& value,
                                    const OptionalTensor& attn_mask, double dropout_p,
                                    bool is_causal, std::optional<double> scale, bool enable_gqa) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("flash::scaled_dot_product_attention", "")
                             .typed<Signature>();
  return op.call(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa);
}

ReplaceSdpa::ReplaceSdpa() { replacement().add(); }
ReplaceSdpa::~ReplaceSdpa() { replacement().remove(); }

}  // namespace flash

TORCH_LIBRARY_FRAGMENT(flash, m) {
  // CompositeImplicitAutograd: it is made of differentiable operators.
  m.def(
      "scaled_dot_product_attention(Tensor query, Tensor key, Tensor value, "
      "Tensor? attn_mask=None, float dropout_p=0.0, bool is_causal=False, *, float? scale=None, "
      "bool enable_gqa=False) -> Tensor",
      flash::compute);
  m.def("_replace_sdpa(bool on) -> ()", flash::replace_sdpa);
}

// torch.vmap decomposes it, too, since its parts have batching rules.
TORCH_LIBRARY_IMPL(flash, FuncTorchBatchedDecomposition, m) {
  m.impl("scaled_dot_product_attention", flash::compute);
}
