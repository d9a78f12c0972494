#include "layers/tft/lstm.h"

#include <ATen/Dispatch.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <flash_attention/layer_kernels.h>
#include <flash_attention/matrix_product.h>
#include <torch/torch.h>

#include "layers/common/row_blocks.h"

namespace flash::models {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// Calls `call(T(), begin, end)` for parts of the batch.
template <class Call>
void for_batch(const Tensor& like, int64_t batch, const Call& call) {
  constexpr int64_t kWindowsPerTask = 16;
  AT_DISPATCH_FLOATING_TYPES(like.scalar_type(), "lstm", [&] {
    at::parallel_for(0, batch, kWindowsPerTask,
                     [&](int64_t begin, int64_t end) { call(scalar_t(), begin, end); });
  });
}

/// Steps whose rows together make a block.
int64_t steps_at_once(int64_t batch) {
  return std::max<int64_t>(kRowsPerBlock * at::get_num_threads() / std::max<int64_t>(batch, 1), 1);
}

template <class Call>
void for_steps(int64_t steps, int64_t batch, bool backwards, const Call& call) {
  const int64_t at_once = steps_at_once(batch);
  const int64_t blocks = (steps + at_once - 1) / at_once;
  for (int64_t i = 0; i < blocks; ++i) {
    const int64_t first = (backwards ? blocks - 1 - i : i) * at_once;
    call(first, std::min(at_once, steps - first));
  }
}

class LstmFunction : public torch::autograd::Function<LstmFunction> {
 public:
  static variable_list forward(AutogradContext* context, const Tensor& x, const Tensor& hidden,
                               const Tensor& cell, const Tensor& input_weight,
                               const Tensor& hidden_weight, const Tensor& bias, bool keep) {
    at::AutoDispatchBelowADInplaceOrView guard;
    const int64_t steps = x.size(0), batch = x.size(1), width = hidden.size(1);
    const Tensor rows = x.flatten(0, 1);
    const Tensor gates = at::empty(
        {(keep ? steps : std::min(steps, steps_at_once(batch))) * batch, 4 * width}, x.options());
    const Tensor input_right = input_weight.t().contiguous(),
                 hidden_right = hidden_weight.t().contiguous();
    Tensor out = at::empty({steps, batch, width}, x.options());
    Tensor cells = at::empty({keep ? steps : 2, batch, width}, x.options());
    Tensor last_hidden = hidden, last_cell = cell;
    for_steps(steps, batch, /*backwards=*/false, [&](int64_t first, int64_t count) {
      Tensor block = gates.narrow(0, keep ? first * batch : 0, count * batch);
      matrix_product(rows.narrow(0, first * batch, count * batch), input_right, block);
      for (int64_t t = first; t < first + count; ++t) {
        Tensor step = block.narrow(0, (t - first) * batch, batch);
        matrix_product(last_hidden, hidden_right, step, ProductResult::kAdd);
        Tensor new_cell = cells[keep ? t : t % 2], new_hidden = out[t];
        for_batch(x, batch, [&]<class T>(T, int64_t begin, int64_t end) {
          const int64_t at = begin * width;
          kernels::lstm(step.mutable_data_ptr<T>() + 4 * at, bias.const_data_ptr<T>(),
                        last_cell.const_data_ptr<T>() + at, new_cell.mutable_data_ptr<T>() + at,
                        new_hidden.mutable_data_ptr<T>() + at, end - begin, width);
        });
        last_hidden = new_hidden;
        last_cell = new_cell;
      }
    });
    if (keep) {
      context->save_for_backward({x, hidden, cell, input_weight, hidden_weight, gates, cells, out});
    }
    return {out, last_hidden.clone(), last_cell.clone()};
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    refuse_second_derivative("lstm");
    at::AutoDispatchBelowADInplaceOrView guard;
    const auto saved = context->get_saved_variables();
    const Tensor &x = saved[0], &hidden = saved[1], &cell = saved[2], &input_weight = saved[3],
                 &hidden_weight = saved[4], &gates = saved[5], &cells = saved[6], &out = saved[7];
    const int64_t steps = x.size(0), batch = x.size(1), width = hidden.size(1);
    const Tensor to_out = gradients[0].defined() ? gradients[0].contiguous() : at::zeros_like(out);
    const auto given = [&](size_t i) {
      return gradients[i].defined() ? gradients[i].clone(at::MemoryFormat::Contiguous)
                                    : at::zeros_like(cell);
    };
    Tensor to_hidden = given(1), to_cell = given(2);
    const Tensor rows = x.flatten(0, 1), out_rows = out.flatten(0, 1);
    Tensor x_gradient = at::empty_like(rows);
    Tensor input_gradient = at::zeros_like(input_weight),
           hidden_gradient = at::zeros_like(hidden_weight),
           bias_sums = at::zeros({at::get_num_threads(), 4 * width}, x.options());
    const Tensor to_gates =
        at::empty({std::min(steps, steps_at_once(batch)) * batch, 4 * width}, x.options());
    for_steps(steps, batch, /*backwards=*/true, [&](int64_t first, int64_t count) {
      Tensor block = to_gates.narrow(0, 0, count * batch);
      for (int64_t t = first + count - 1; t >= first; --t) {
        Tensor step = block.narrow(0, (t - first) * batch, batch);
        const Tensor step_gates = gates.narrow(0, t * batch, batch), step_out = to_out[t];
        const Tensor this_cell = cells[t], last_cell = t > 0 ? cells[t - 1] : cell;
        for_batch(x, batch, [&]<class T>(T, int64_t begin, int64_t end) {
          T* sums = bias_sums.mutable_data_ptr<T>() + at::get_thread_num() * 4 * width;
          const int64_t at = begin * width;
          kernels::lstm_backward(
              step_gates.const_data_ptr<T>() + 4 * at, this_cell.const_data_ptr<T>() + at,
              last_cell.const_data_ptr<T>() + at, step_out.const_data_ptr<T>() + at,
              to_hidden.const_data_ptr<T>() + at, to_cell.mutable_data_ptr<T>() + at,
              step.mutable_data_ptr<T>() + 4 * at, sums, end - begin, width);
        });
        matrix_product(step, hidden_weight, to_hidden);
      }
      const int64_t row = first * batch, n = count * batch;
      matrix_product(block, input_weight, x_gradient.narrow(0, row, n));
      matrix_product(block.t(), rows.narrow(0, row, n), input_gradient, ProductResult::kAdd);
      // The states before these steps: the outputs one step earlier, or the initial state.
      const int64_t initial = first == 0 ? batch : 0;
      if (initial > 0) {
        matrix_product(block.narrow(0, 0, batch).t(), hidden, hidden_gradient, ProductResult::kAdd);
      }
      if (n > initial) {
        matrix_product(block.narrow(0, initial, n - initial).t(),
                       out_rows.narrow(0, row + initial - batch, n - initial), hidden_gradient,
                       ProductResult::kAdd);
      }
    });
    return {x_gradient.view_as(x), to_hidden,        to_cell, input_gradient,
            hidden_gradient,       bias_sums.sum(0), Tensor()};
  }
};

}  // namespace

LstmOutputs lstm_layer(const Tensor& x, const Tensor& hidden, const Tensor& cell,
                       const LstmWeights& weights) {
  const bool keep = at::GradMode::is_enabled() &&
                    (x.requires_grad() || hidden.requires_grad() || cell.requires_grad() ||
                     weights.input.requires_grad() || weights.hidden.requires_grad() ||
                     weights.bias.requires_grad());
  const auto results = LstmFunction::apply(x.contiguous(), hidden.contiguous(), cell.contiguous(),
                                           weights.input.contiguous(), weights.hidden.contiguous(),
                                           weights.bias, keep);
  return {.all = results[0], .hidden = results[1], .cell = results[2]};
}

}  // namespace flash::models
