#include "layers/common/attention_projections.h"

namespace flash::models {

void AttentionProjections::register_in(torch::nn::Module& owner, int64_t hidden_size,
                                       int64_t heads) {
  heads_ = heads;
  head_dim_ = hidden_size / heads;
  const int64_t inner = heads_ * head_dim_;
  query_ = owner.register_module("query_projection", torch::nn::Linear(hidden_size, inner));
  key_ = owner.register_module("key_projection", torch::nn::Linear(hidden_size, inner));
  value_ = owner.register_module("value_projection", torch::nn::Linear(hidden_size, inner));
  out_ = owner.register_module("out_projection", torch::nn::Linear(inner, hidden_size));
}

}  // namespace flash::models
