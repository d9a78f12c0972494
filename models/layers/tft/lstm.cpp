#include "layers/tft/lstm.h"

#include <ATen/Dispatch.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <flash_attention/layer_kernels.h>
#include <flash_attention/matrix_product.h>
#include <torch/torch.h>

#include <algorithm>

#include "layers/common/row_blocks.h"

namespace flash::models {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// A copy of a weight with rows an odd number of cache lines apart: rows a power of two apart share
/// few sets of the first-level cache, and the product of each step reads all of them.
Tensor with_spread_rows(const Tensor& weight) {
  const Tensor memory =
      at::empty({weight.size(0), padded_row(weight.size(1)) | 16}, weight.options());
  // Through a contiguous copy, because ATen transposes in blocks only into contiguous memory.
  return memory.narrow(1, 0, weight.size(1)).copy_(weight.contiguous());
}

/// Windows of a group. Threads share the batch in whole groups, and each group has its own sums.
constexpr int64_t kWindowsPerGroup = 16;

int64_t groups_of(int64_t batch) { return (batch + kWindowsPerGroup - 1) / kWindowsPerGroup; }

/// Calls `call(T(), begin, end)` for parts of the batch. Windows do not depend on each other, so a
/// thread takes its part through all steps of a block.
template <class Call>
void for_batch(const Tensor& like, int64_t batch, const Call& call) {
  AT_DISPATCH_FLOATING_TYPES(like.scalar_type(), "lstm", [&] {
    at::parallel_for(0, groups_of(batch), 1, [&](int64_t begin, int64_t end) {
      call(scalar_t(), begin * kWindowsPerGroup, std::min(end * kWindowsPerGroup, batch));
    });
  });
}

/// Steps whose rows together make a block of one thread.
int64_t steps_per_thread(int64_t batch) {
  return std::max<int64_t>(kRowsPerBlock / std::max<int64_t>(batch, 1), 1);
}

/// Steps of a block, which has rows for all threads.
int64_t steps_at_once(int64_t batch) { return steps_per_thread(batch) * at::get_num_threads(); }

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
    const Tensor input_right = transposed(input_weight, steps * batch),
                 weight_columns = with_spread_rows(hidden_weight.t());
    const Tensor out = at::empty({steps, batch, width}, x.options());
    const Tensor cells = at::empty({keep ? steps : 2, batch, width}, x.options());
    const auto slot = [keep](int64_t t) { return keep ? t : t % 2; };
    for_steps(steps, batch, /*backwards=*/false, [&](int64_t first, int64_t count) {
      const Tensor block = gates.narrow(0, keep ? first * batch : 0, count * batch);
      matrix_product(rows.narrow(0, first * batch, count * batch), input_right, block);
      for_batch(x, batch, [&]<class T>(T, int64_t begin, int64_t end) {
        // The states after step t.
        T* const hiddens = out.mutable_data_ptr<T>() + begin * width;
        T* const all_cells = cells.mutable_data_ptr<T>() + begin * width;
        const auto hidden_at = [&](int64_t t) { return hiddens + t * batch * width; };
        const auto cell_at = [&](int64_t t) { return all_cells + slot(t) * batch * width; };
        const T* last_hidden = hidden.const_data_ptr<T>() + begin * width;
        const T* last_cell = cell.const_data_ptr<T>() + begin * width;
        if (first > 0) last_hidden = hidden_at(first - 1), last_cell = cell_at(first - 1);
        T* step = block.mutable_data_ptr<T>() + begin * 4 * width;
        for (int64_t t = first; t < first + count; ++t, step += batch * 4 * width) {
          kernels::block_product({end - begin, 4 * width, width, /*accumulate=*/true},
                                 kernels::LeftFactor<T>{last_hidden, width, 1},
                                 {weight_columns.const_data_ptr<T>(), weight_columns.stride(0)},
                                 {step, 4 * width});
          kernels::lstm(step, bias.const_data_ptr<T>(), last_cell, cell_at(t), hidden_at(t),
                        end - begin, width);
          last_hidden = hidden_at(t), last_cell = cell_at(t);
        }
      });
    });
    if (keep) {
      context->save_for_backward({x, hidden, cell, input_weight, hidden_weight, gates, cells, out});
    }
    if (steps == 0) return {out, hidden.clone(), cell.clone()};
    return {out, out[steps - 1].clone(), cells[slot(steps - 1)].clone()};
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
           bias_sums = at::zeros({groups_of(batch), 4 * width}, x.options());
    const Tensor to_gates =
        at::empty({std::min(steps, steps_at_once(batch)) * batch, 4 * width}, x.options());
    const Tensor weight_rows = with_spread_rows(hidden_weight);
    for_steps(steps, batch, /*backwards=*/true, [&](int64_t first, int64_t count) {
      const Tensor block = to_gates.narrow(0, 0, count * batch);
      for_batch(x, batch, [&]<class T>(T, int64_t begin, int64_t end) {
        const auto at_step = [&](const Tensor& t, int64_t step, int64_t row_width) {
          return t.const_data_ptr<T>() + (step * batch + begin) * row_width;
        };
        T* const of_hidden = to_hidden.mutable_data_ptr<T>() + begin * width;
        for (int64_t t = first + count - 1; t >= first; --t) {
          T* const step = block.mutable_data_ptr<T>() + ((t - first) * batch + begin) * 4 * width;
          const T* const last_cell = t > 0 ? at_step(cells, t - 1, width) : at_step(cell, 0, width);
          for (int64_t first_of_group = begin; first_of_group < end;
               first_of_group += kWindowsPerGroup) {
            const int64_t skipped = (first_of_group - begin) * width;
            kernels::lstm_backward(
                at_step(gates, t, 4 * width) + 4 * skipped, at_step(cells, t, width) + skipped,
                last_cell + skipped, at_step(to_out, t, width) + skipped, of_hidden + skipped,
                to_cell.mutable_data_ptr<T>() + begin * width + skipped, step + 4 * skipped,
                bias_sums.mutable_data_ptr<T>() + first_of_group / kWindowsPerGroup * 4 * width,
                std::min(kWindowsPerGroup, end - first_of_group), width);
          }
          kernels::block_product(
              {end - begin, width, 4 * width}, kernels::LeftFactor<T>{step, 4 * width, 1},
              {weight_rows.const_data_ptr<T>(), weight_rows.stride(0)}, {of_hidden, width});
        }
      });
      matrix_product(block, input_weight, x_gradient.narrow(0, first * batch, count * batch));
      // The steps of one thread at a time, so that sums do not depend on the number of threads.
      const int64_t per_thread = steps_per_thread(batch);
      for (int64_t end = first + count; end > first;) {
        const int64_t begin = (end - 1) / per_thread * per_thread;
        const int64_t row = begin * batch, n = (end - begin) * batch;
        const Tensor part = block.narrow(0, row - first * batch, n);
        matrix_product(part.t(), rows.narrow(0, row, n), input_gradient, ProductResult::kAdd);
        // The states before these steps: the outputs one step earlier, or the initial state.
        const int64_t initial = begin == 0 ? batch : 0;
        if (initial > 0) {
          matrix_product(part.narrow(0, 0, batch).t(), hidden, hidden_gradient,
                         ProductResult::kAdd);
        }
        if (n > initial) {
          matrix_product(part.narrow(0, initial, n - initial).t(),
                         out_rows.narrow(0, row + initial - batch, n - initial), hidden_gradient,
                         ProductResult::kAdd);
        }
        end = begin;
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
                                           weights.bias.contiguous(), keep);
  return {.all = results[0], .hidden = results[1], .cell = results[2]};
}

}  // namespace flash::models
