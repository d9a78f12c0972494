#include "layers/informer/added_rows.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/torch.h>

#include "layers/common/row_blocks.h"

namespace flash::models {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

class AddedRows : public torch::autograd::Function<AddedRows> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& rows,
                            const at::Tensor& index, const at::Tensor& added) {
    context->mark_dirty({rows});
    context->save_for_backward({index});
    add_rows(rows, index, added.contiguous());
    return rows;
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    refuse_second_derivative("a sum of rows");
    const at::Tensor& g = gradients[0];
    return {g, at::Tensor(), g.index_select(0, context->get_saved_variables()[0])};
  }
};

}  // namespace

void add_rows(const at::Tensor& rows, const at::Tensor& index, const at::Tensor& added) {
  constexpr int64_t kColumnsPerTask = 32;
  const at::Tensor positions = index.contiguous();
  const auto* const position = positions.const_data_ptr<int64_t>();
  const int64_t count = positions.numel(), width = rows.size(1);
  AT_DISPATCH_FLOATING_TYPES(rows.scalar_type(), "add_rows", [&] {
    auto* const to = rows.mutable_data_ptr<scalar_t>();
    const auto* const from = added.const_data_ptr<scalar_t>();
    // Threads share columns: rows may meet in one position.
    at::parallel_for(0, width, kColumnsPerTask, [&](int64_t begin, int64_t end) {
      for (int64_t i = 0; i < count; ++i) {
        scalar_t* const sum = to + position[i] * width;
        const scalar_t* const row = from + i * width;
        for (int64_t c = begin; c < end; ++c) sum[c] += row[c];
      }
    });
  });
}

at::Tensor with_added_rows(const at::Tensor& rows, const at::Tensor& index,
                           const at::Tensor& added) {
  return AddedRows::apply(rows, index, added);
}

}  // namespace flash::models
