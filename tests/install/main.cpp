#include <flash_attention/models/checkpoint.h>
#include <flash_attention/models/forecaster.h>
#include <flash_attention/models/patchtst.h>
#include <flash_attention/ops.h>
#include <torch/torch.h>

#include <cstdlib>
#include <filesystem>
#include <string>

// A few training steps with both installed libraries, and a forecast from the model's file: the
// loss must decrease.
int main() {
  torch::manual_seed(1);
  flash::models::PatchTST model(flash::models::PatchTSTOptions(/*h=*/4, /*input_size=*/32)
                                    .hidden_size(32)
                                    .n_heads(4)
                                    .encoder_layers(1)
                                    .dropout(0)
                                    .use_flash_attention(true));
  torch::optim::Adam optimizer(model->parameters(), /*lr=*/1e-2);
  const auto past = torch::randn({8, 32, 1});
  const auto target = flash::attention(past, past, past).slice(/*dim=*/1, /*start=*/28);
  double first = 0, last = 0;
  for (int step = 0; step < 10; ++step) {
    optimizer.zero_grad();
    const auto loss = torch::mse_loss(model->forward(past), target);
    loss.backward();
    optimizer.step();
    (step == 0 ? first : last) = loss.item<double>();
  }
  const std::string path = std::filesystem::temp_directory_path() / "consumer.safetensors";
  flash::models::save_model(path, *model);
  const auto forecaster = flash::models::Forecaster::load(path);
  const auto forecast = forecaster.predict(past[0].flatten());
  return last < first && forecast.size(1) == forecaster.horizon() ? EXIT_SUCCESS : EXIT_FAILURE;
}
