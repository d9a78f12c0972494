// A child that is forked after threads have run, in a program without Python.

#include <ATen/Parallel.h>
#include <flash_attention/ops.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <torch/torch.h>
#include <unistd.h>

#include <csignal>

namespace {

/// The output, and the gradient of its sum by the query, of a call large enough for two threads.
std::pair<torch::Tensor, torch::Tensor> attention_and_gradient() {
  torch::manual_seed(1);
  const torch::Tensor query = torch::randn({2, 8, 256, 32}).requires_grad_();
  const torch::Tensor key = torch::randn({2, 8, 256, 32}), value = torch::randn({2, 8, 256, 32});
  const torch::Tensor out =
      flash::attention(query, key, value, flash::AttentionOptions().causal(true));
  return {out.detach(), torch::autograd::grad({out.sum()}, {query})[0]};
}

TEST(Fork, ChildComputesTheSameAsItsParent) {
  const int threads = at::get_num_threads();
  at::set_num_threads(2);
  const auto [out, gradient] = attention_and_gradient();
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    alarm(30);  // kills a child that waits for threads that it does not have
    const auto [its_out, its_gradient] = attention_and_gradient();
    _exit(torch::equal(its_out, out) && torch::equal(its_gradient, gradient) ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status)) << "ended by signal " << WTERMSIG(status);
  EXPECT_EQ(WEXITSTATUS(status), 0);
  EXPECT_TRUE(torch::equal(attention_and_gradient().first, out));
  at::set_num_threads(threads);
}

}  // namespace
