#include "train/loop/gradient_exchange.h"

#include <torch/torch.h>

#include <algorithm>
#include <functional>

namespace flash::models {
namespace {

/// Called when autograd has written the gradient of a leaf. A hook of the tensor would run inside a
/// gradient checkpoint, too, whose backward has a gradient of its block alone.
class WhenWritten : public torch::autograd::PostAccumulateGradHook {
 public:
  explicit WhenWritten(std::function<void(const at::Tensor&)> call) : call_(std::move(call)) {}
  void operator()(const torch::autograd::Variable& leaf) override { call_(leaf.grad()); }

 private:
  std::function<void(const at::Tensor&)> call_;
};

/// Large enough that the latency of a message is small beside its transfer, small enough that the
/// first sums start early.
constexpr int64_t kBucketElements = 256 * 1024;

int64_t elements_of(const at::Tensor& parameter) {
  return parameter.numel() * (parameter.is_complex() ? 2 : 1);
}

/// Even, because a complex tensor begins at an even element.
int64_t padded(int64_t elements) { return elements + elements % 2; }

/// `values` in the shape and dtype of `parameter`.
at::Tensor shaped_as(const at::Tensor& parameter, const at::Tensor& values) {
  if (!parameter.is_complex()) return values.view(parameter.sizes());
  std::vector<int64_t> sizes = parameter.sizes().vec();
  sizes.push_back(2);
  return at::view_as_complex(values.view(sizes));
}

}  // namespace

GradientExchange::GradientExchange(
    const std::vector<std::pair<std::string, at::Tensor>>& parameters, Processes& processes)
    : processes_(processes) {
  if (processes.alone()) return;
  std::vector<int64_t> offsets, sizes;
  // Modules are registered in the order of the forward, so a backward reaches the last first.
  for (auto one = parameters.rbegin(); one != parameters.rend(); ++one) {
    const auto& [name, parameter] = *one;
    const at::ScalarType dtype = c10::toRealValueType(parameter.scalar_type());
    TORCH_CHECK_VALUE(dtype == at::kFloat, "expected a float32 or complex64 parameter ", name,
                      ", got ", parameter.scalar_type());
    if (sizes.empty() || sizes.back() >= kBucketElements) sizes.push_back(0);
    offsets.push_back(sizes.back());
    sizes.back() += padded(elements_of(parameter));
    entries_.push_back({parameter, {}, sizes.size() - 1});
  }
  for (const int64_t size : sizes) buckets_.push_back({.values = at::zeros({size}), .sum = {}});
  for (size_t i = 0; i < entries_.size(); ++i) {
    Entry& entry = entries_[i];
    Bucket& bucket = buckets_[entry.bucket];
    entry.gradient = shaped_as(entry.parameter,
                               bucket.values.narrow(0, offsets[i], elements_of(entry.parameter)));
    ++bucket.parameters;
    torch::autograd::impl::set_post_acc_grad_hooks(
        entry.parameter, std::make_unique<WhenWritten>(
                             [this, i](const at::Tensor& gradient) { arrived(i, gradient); }));
  }
}

GradientExchange::~GradientExchange() {
  for (const Entry& entry : entries_) {
    torch::autograd::impl::set_post_acc_grad_hooks(entry.parameter, nullptr);
  }
}

void GradientExchange::begin() {
  for (Bucket& bucket : buckets_) {
    bucket.values.zero_();
    bucket.missing = bucket.parameters;
    bucket.sum.reset();
  }
  started_ = 0;
  active_ = true;
}

void GradientExchange::arrived(size_t entry, const at::Tensor& gradient) {
  if (!active_) return;
  const at::NoGradGuard no_grad;
  entries_[entry].gradient.copy_(gradient);
  --buckets_[entries_[entry].bucket].missing;
  while (started_ < buckets_.size() && buckets_[started_].missing == 0) start_next();
}

void GradientExchange::start_next() {
  Bucket& bucket = buckets_[started_++];
  bucket.sum = processes_.start_sum(bucket.values);
}

void GradientExchange::finish() {
  active_ = false;
  // A parameter without a gradient keeps its bucket back until here.
  while (started_ < buckets_.size()) start_next();
  for (Bucket& bucket : buckets_) bucket.sum->wait();
  for (Entry& entry : entries_) {
    if (entry.parameter.grad().defined()) entry.parameter.mutable_grad() = entry.gradient;
  }
}

}  // namespace flash::models
