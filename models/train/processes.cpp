#include "train/processes.h"

#include <torch/torch.h>

#include <algorithm>
#include <functional>
#include <torch/csrc/distributed/c10d/GroupRegistry.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <utility>

#include "train/fnv1a.h"

namespace flash::models {
namespace {

class SingleProcess : public Processes {
 public:
  int64_t count() const override { return 1; }
  int64_t rank() const override { return 0; }
  std::unique_ptr<PendingSum> start_sum(const at::Tensor&) override {
    struct Done : PendingSum {
      void wait() override {}
    };
    return std::make_unique<Done>();
  }
};

class Group : public Processes {
 public:
  explicit Group(c10::intrusive_ptr<c10d::ProcessGroup> group) : group_(std::move(group)) {}

  int64_t count() const override { return group_->getSize(); }
  int64_t rank() const override { return group_->getRank(); }

  std::unique_ptr<PendingSum> start_sum(const at::Tensor& tensor) override {
    auto pending = std::make_unique<Pending>(*this, std::vector<at::Tensor>{tensor});
    explaining([&] { pending->work = group_->allreduce(pending->tensors); });
    return pending;
  }

 private:
  struct Pending : PendingSum {
    Pending(const Group& of, std::vector<at::Tensor> summed)
        : group(of), tensors(std::move(summed)) {}
    void wait() override {
      group.explaining([&] { work->wait(); });
    }
    const Group& group;
    std::vector<at::Tensor> tensors;  // alive until the sum is complete
    c10::intrusive_ptr<c10d::Work> work;
  };

  // What Gloo says is about sockets, not about processes.
  void explaining(const std::function<void()>& call) const {
    std::string reason;
    try {
      return call();
    } catch (const c10::Error& error) {
      reason = error.what_without_backtrace();
    } catch (const std::exception& error) {
      reason = error.what();
    }
    TORCH_CHECK(false, "process ", rank() + 1, " of ", count(),
                ": expected an answer of all processes of the training, but one has ended or does "
                "not answer (",
                reason.substr(0, reason.find('\n')), ")");
  }

  c10::intrusive_ptr<c10d::ProcessGroup> group_;
};

}  // namespace

at::Tensor Processes::sum(const at::Tensor& tensor) {
  const at::Tensor total = alone() ? tensor : tensor.clone(at::MemoryFormat::Contiguous);
  start_sum(total)->wait();
  return total;
}

bool Processes::any(bool flag) {
  return alone() ? flag : sum(at::full({1}, flag ? 1 : 0, at::kLong)).item<int64_t>() > 0;
}

bool Processes::divides(const at::Tensor& indices) const { return indices.size(0) >= count(); }

at::Tensor Processes::share(const at::Tensor& indices) const {
  if (!divides(indices)) return indices;
  const int64_t total = indices.size(0);
  // The first `total % count` processes have one more.
  const int64_t each = total / count(), more = total % count();
  const int64_t begin = rank() * each + std::min(rank(), more);
  return indices.slice(0, begin, begin + each + (rank() < more ? 1 : 0));
}

double Processes::weight(const at::Tensor& indices) const {
  if (!divides(indices)) return 1.0 / static_cast<double>(count());
  return static_cast<double>(share(indices).size(0)) / static_cast<double>(indices.size(0));
}

void Processes::check_same(const std::string& text, const char* what) {
  Fnv1a hash;
  hash.add(text.data(), text.size());
  at::Tensor hashes = at::zeros({count()}, at::kLong);
  hashes[rank()] = static_cast<int64_t>(hash.value());
  hashes = sum(hashes);
  std::string others;
  for (int64_t i = 1; i < count(); ++i) {
    if (hashes[i].item<int64_t>() != hashes[0].item<int64_t>()) {
      others += (others.empty() ? "" : ", ") + std::to_string(i + 1);
    }
  }
  TORCH_CHECK_VALUE(others.empty(), "expected the same ", what,
                    " on every process, got others than those of process 1 on process ", others,
                    " of ", count());
}

StartTogether::~StartTogether() {
  if (agreed_) return;
  try {
    processes_.any(true);
  } catch (const std::exception&) {  // the others have ended, too
  }
}

void StartTogether::agree() {
  agreed_ = true;
  TORCH_CHECK(!processes_.any(false), "process ", processes_.rank() + 1, " of ", processes_.count(),
              ": another process could not start, and says why");
}

std::unique_ptr<Processes> single_process() { return std::make_unique<SingleProcess>(); }

std::unique_ptr<Processes> processes_of(const std::string& group) {
  return std::make_unique<Group>(c10d::resolve_process_group(group));
}

}  // namespace flash::models
