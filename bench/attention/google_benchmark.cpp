// Flash, standard attention and torch's over lengths, head_dims, masks and dtypes.
//
// Benchmarks are named Direction/method/dtype/causal|full/L:length/D:head_dim; google_benchmark.py
// selects a sweep with --benchmark_filter. --threads=N sets torch's intra-op threads, 1 by default.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <benchmark/benchmark.h>
#include <flash_attention/ops.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <limits>
#include <string>
#include <vector>

namespace {

constexpr int64_t kHeads = 8;
constexpr int64_t kLengths[] = {64, 128, 256, 512, 1024, 2048, 4096};
constexpr int64_t kHeadDims[] = {8, 16, 32, 64, 128};

enum class Method { Flash, Standard, Torch };
enum class Direction { Forward, Backward, ForwardBackward };

struct Case {
  Direction direction;
  Method method;
  at::ScalarType dtype;
  bool causal;
  int64_t length;
  int64_t head_dim;

  std::string name() const {
    static constexpr const char* kDirections[] = {"Forward", "Backward", "ForwardBackward"};
    static constexpr const char* kMethods[] = {"flash", "standard", "torch"};
    return std::string(kDirections[static_cast<int>(direction)]) + "/" +
           kMethods[static_cast<int>(method)] + "/" + (dtype == at::kFloat ? "f32" : "f64") + "/" +
           (causal ? "causal" : "full") + "/L:" + std::to_string(length) +
           "/D:" + std::to_string(head_dim);
  }

  // A multiply-add is two; two matrix products forward and five backward; causal counts half, as in
  // the FlashAttention papers.
  double flops() const {
    const double pairs = causal ? 0.5 * length * (length + 1) : 1.0 * length * length;
    const double product = 2.0 * kHeads * pairs * head_dim;
    const double products = direction == Direction::Forward    ? 2
                            : direction == Direction::Backward ? 5
                                                               : 7;
    return products * product;
  }
};

struct Inputs {
  std::vector<at::Tensor> qkv;
  at::Tensor mask;
  at::Tensor grad;
};

Inputs make_inputs(const Case& c) {
  at::manual_seed(0);
  Inputs in;
  const auto options = at::TensorOptions(c.dtype);
  for (int i = 0; i < 3; ++i) {
    in.qkv.push_back(at::randn({1, kHeads, c.length, c.head_dim}, options)
                         .set_requires_grad(c.direction != Direction::Forward));
  }
  in.grad = at::randn({1, kHeads, c.length, c.head_dim}, options);
  if (c.causal && c.method == Method::Standard) {
    in.mask =
        at::full({c.length, c.length}, -std::numeric_limits<double>::infinity(), options).triu(1);
  }
  return in;
}

// Standard attention as a user writes it; the mask is made once, outside the timed loop.
at::Tensor textbook(const Inputs& in) {
  const double scale = 1.0 / std::sqrt(static_cast<double>(in.qkv[0].size(-1)));
  at::Tensor scores = at::matmul(in.qkv[0], in.qkv[1].transpose(-1, -2)) * scale;
  if (in.mask.defined()) scores = scores + in.mask;
  return at::matmul(at::softmax(scores, -1), in.qkv[2]);
}

at::Tensor attend(const Case& c, const Inputs& in) {
  switch (c.method) {
    case Method::Flash:
      return flash::attention(in.qkv[0], in.qkv[1], in.qkv[2],
                              flash::AttentionOptions().causal(c.causal));
    case Method::Standard:
      return textbook(in);
    case Method::Torch:
      break;
  }
  return at::scaled_dot_product_attention(in.qkv[0], in.qkv[1], in.qkv[2], std::nullopt, 0.0,
                                          c.causal);
}

void run(benchmark::State& state, const Case& c) {
  const Inputs in = make_inputs(c);
  at::Tensor out = attend(c, in);  // also warms up: a process's first call is slow
  for (auto _ : state) {
    if (c.direction != Direction::Backward) out = attend(c, in);
    if (c.direction != Direction::Forward) {
      const bool retain = c.direction == Direction::Backward;
      benchmark::DoNotOptimize(torch::autograd::grad({out}, in.qkv, {in.grad}, retain));
    }
    benchmark::DoNotOptimize(out);
  }
  state.counters["FLOP/s"] =
      benchmark::Counter(c.flops(), benchmark::Counter::kIsIterationInvariantRate);
}

void register_all() {
  for (auto direction : {Direction::Forward, Direction::Backward, Direction::ForwardBackward})
    for (auto dtype : {at::kFloat, at::kDouble})
      for (bool causal : {false, true})
        for (int64_t head_dim : kHeadDims)
          for (int64_t length : kLengths)
            for (auto method : {Method::Flash, Method::Standard, Method::Torch}) {
              const Case c{direction, method, dtype, causal, length, head_dim};
              benchmark::RegisterBenchmark(c.name().c_str(),
                                           [c](benchmark::State& s) { run(s, c); })
                  ->UseRealTime()
                  ->Unit(benchmark::kMillisecond);
            }
}

// Removes --threads=N from argv. Prints an error and returns false unless N is positive.
bool set_threads(int* argc, char** argv) {
  constexpr const char* kFlag = "--threads=";
  int threads = 1;
  int kept = 1;
  for (int i = 1; i < *argc; ++i) {
    if (std::strncmp(argv[i], kFlag, std::strlen(kFlag)) != 0) {
      argv[kept++] = argv[i];
      continue;
    }
    threads = std::atoi(argv[i] + std::strlen(kFlag));
    if (threads < 1) {
      std::cerr << "flash_attention_benchmark: expected --threads=N with N >= 1, got " << argv[i]
                << "\n";
      return false;
    }
  }
  *argc = kept;
  at::set_num_threads(threads);
  benchmark::AddCustomContext("threads", std::to_string(threads));
  return true;
}

std::string build_info() {
  return c10::Dispatcher::singleton()
      .findSchemaOrThrow("flash::_build_info", "")
      .typed<std::string()>()
      .call();
}

}  // namespace

int main(int argc, char** argv) {
  if (!set_threads(&argc, argv)) return 1;
  register_all();
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::AddCustomContext("heads", std::to_string(kHeads));
  benchmark::AddCustomContext("torch_cpu_capability", at::get_cpu_capability());
  benchmark::AddCustomContext("flash_build_info", build_info());
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
