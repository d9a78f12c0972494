// Safetensors files: round trips, and error messages for broken files.

#include <flash_attention/models/safetensors.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "models/fixture.h"
#include "models/safetensors_bytes.h"
#include "models/temporary_file.h"

namespace flash::tests {
namespace {

using models::load_state_dict;
using models::read_safetensors;
using models::state_dict;
using models::TensorMap;
using models::write_safetensors;
using testing::AllOf;
using testing::HasSubstr;

/// The error message for reading these bytes.
std::string safetensors_refusal(const std::string& bytes) {
  const TemporaryFile file(".safetensors", bytes);
  try {
    read_safetensors(file.path());
  } catch (const c10::ValueError& error) {
    const std::string message = error.what_without_backtrace();
    EXPECT_THAT(message, HasSubstr(file.path()));
    return message;
  }
  return "not refused";
}

TEST(Safetensors, RoundTrip) {
  torch::manual_seed(1);
  TensorMap tensors{{"scalar", torch::tensor(2.5)},
                    {"empty", torch::zeros({0, 3})},
                    {"transposed", torch::randn({4, 6}, torch::kDouble).t()},
                    {"odd bytes", torch::tensor({true, false, true})},
                    {"half", torch::randn({5}).to(torch::kHalf)},
                    {"bfloat16", torch::randn({5}).to(torch::kBFloat16)},
                    {"complex", torch::randn({2, 2}, torch::kComplexFloat)}};
  for (const auto type : {torch::kByte, torch::kChar, torch::kShort, torch::kInt, torch::kLong}) {
    tensors[c10::toString(type)] = torch::arange(7).to(type);
  }
  const TemporaryFile file(".safetensors");
  const models::Metadata metadata{{"format", "pt"}, {"text", "quote \" and ü"}};
  write_safetensors(file.path(), tensors, metadata);
  const auto read = read_safetensors(file.path());
  EXPECT_EQ(read.metadata, metadata);
  ASSERT_EQ(read.tensors.size(), tensors.size());
  for (const auto& [name, tensor] : tensors) {
    EXPECT_EQ(read.tensors.at(name).scalar_type(), tensor.scalar_type()) << name;
    EXPECT_TRUE(torch::equal(read.tensors.at(name), tensor)) << name;
  }
}

TEST(Safetensors, RoundTripTypesThatTorchOnlyStores) {
  TensorMap tensors;
  for (const auto type : {torch::kUInt16, torch::kUInt32, torch::kUInt64, torch::kFloat8_e4m3fn,
                          torch::kFloat8_e5m2}) {
    tensors[c10::toString(type)] = torch::arange(32, torch::kByte).view(type);
  }
  const TemporaryFile file(".safetensors");
  write_safetensors(file.path(), tensors);
  const TensorMap read = read_safetensors(file.path()).tensors;
  for (const auto& [name, tensor] : tensors) {
    EXPECT_EQ(read.at(name).scalar_type(), tensor.scalar_type()) << name;
    EXPECT_TRUE(torch::equal(read.at(name).view(torch::kByte), tensor.view(torch::kByte))) << name;
  }
}

TEST(Safetensors, HaveAlignedData) {
  std::string name;
  for (int i = 0; i < 8; ++i) {
    name += 'a';
    const TemporaryFile file(".safetensors");
    write_safetensors(file.path(), {{name, torch::ones({2})}});
    std::ifstream stream(file.path(), std::ios::binary);
    EXPECT_EQ(stream.get() % 8, 0) << name;  // the lowest byte of the header's length
    EXPECT_TRUE(torch::equal(read_safetensors(file.path()).tensors.at(name), torch::ones({2})));
  }
}

TEST(Safetensors, MayBeEmpty) {
  const TemporaryFile file(".safetensors");
  write_safetensors(file.path(), {});
  EXPECT_TRUE(read_safetensors(file.path()).tensors.empty());
}

TEST(Safetensors, ReportFailedWrites) {
  EXPECT_THAT([] { write_safetensors("/nonexistent/model.safetensors", {}); },
              testing::ThrowsMessage<c10::ValueError>(
                  AllOf(HasSubstr("/nonexistent/model.safetensors"), HasSubstr("cannot be written"),
                        HasSubstr("No such file or directory"))));
}

TEST(Safetensors, KeepTheOldFileWhenATensorCannotBeStored) {
  const TemporaryFile file(".safetensors");
  write_safetensors(file.path(), {{"a", torch::ones({2})}});
  EXPECT_THAT(
      [&] {
        write_safetensors(file.path(), {{"b", torch::ones({2}, torch::kComplexDouble)}});
      },
      testing::ThrowsMessage<c10::ValueError>(
          AllOf(HasSubstr("tensor b"), HasSubstr("ComplexDouble cannot be stored"))));
  EXPECT_EQ(read_safetensors(file.path()).tensors.count("a"), 1u);
}

TEST(BrokenSafetensors, ThatDoNotExist) {
  EXPECT_THAT([] { read_safetensors("/nonexistent"); },
              testing::ThrowsMessage<c10::ValueError>(HasSubstr("No such file or directory")));
}

TEST(BrokenSafetensors, TruncatedAnywhere) {
  const std::string whole =
      safetensors_bytes(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 8);
  for (size_t size = 1; size < whole.size(); ++size) {
    EXPECT_THAT(safetensors_refusal(whole.substr(0, size)), HasSubstr("expected")) << size;
  }
  EXPECT_EQ(safetensors_refusal(whole), "not refused");
}

TEST(BrokenSafetensors, WithAHeaderThatIsTooLarge) {
  EXPECT_THAT(safetensors_refusal(std::string(8, '\x7f') + "{}"),
              HasSubstr("expected a header of at most 100000000 bytes"));
}

TEST(BrokenSafetensors, WhoseHeaderIsNotAnObject) {
  EXPECT_THAT(safetensors_refusal(safetensors_bytes("{\"a\":", 0)),
              HasSubstr("expected a JSON object as header, got \""));
  EXPECT_THAT(safetensors_refusal(safetensors_bytes("[]", 0)),
              HasSubstr("expected a JSON object as header, got []"));
  EXPECT_THAT(safetensors_refusal(safetensors_bytes(R"({"a":1})", 0)),
              HasSubstr("tensor a: expected the fields"));
  EXPECT_THAT(safetensors_refusal(safetensors_bytes(R"({"__metadata__":{"k":1}})", 0)),
              HasSubstr("__metadata__ k: expected a string, got 1"));
}

TEST(BrokenSafetensors, WithABadDtype) {
  EXPECT_THAT(safetensors_refusal(safetensors_bytes(
                  R"({"a":{"dtype":"F31","shape":[2],"data_offsets":[0,8]}})", 8)),
              HasSubstr("tensor a: expected a dtype of the format such as \"F32\", got \"F31\""));
}

TEST(BrokenSafetensors, WithABadShape) {
  for (const std::string shape : {"[-1]", "[1.5]", "2", "[\"2\"]", "[18446744073709551615]"}) {
    EXPECT_THAT(safetensors_refusal(safetensors_bytes(
                    R"({"a":{"dtype":"F32","shape":)" + shape + R"(,"data_offsets":[0,8]}})", 8)),
                HasSubstr("tensor a: expected shape as a list of whole numbers, got " + shape));
  }
}

TEST(BrokenSafetensors, WhoseOffsetsDoNotFitTheShape) {
  EXPECT_THAT(
      safetensors_refusal(
          safetensors_bytes(R"({"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}})", 8)),
      HasSubstr("tensor a: expected data_offsets that span shape [3] of \"F32\", got [0,8]"));
  // 2^62 * 4 bytes would wrap around to 0.
  EXPECT_THAT(
      safetensors_refusal(safetensors_bytes(
          R"({"a":{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,0]}})", 0)),
      HasSubstr("tensor a: expected data_offsets that span shape"));
  EXPECT_THAT(safetensors_refusal(safetensors_bytes(
                  R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}})", 8)),
              HasSubstr("tensor a: expected data_offsets [begin, end] with begin <= end"));
}

TEST(BrokenSafetensors, WhoseTensorsOverlapOrLeaveTheFile) {
  const auto two = [](const char* second) {
    return R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
           R"("b":{"dtype":"F32","shape":[2],"data_offsets":)" +
           std::string(second) + "}}";
  };
  EXPECT_EQ(safetensors_refusal(safetensors_bytes(two("[8,16]"), 16)), "not refused");
  EXPECT_THAT(safetensors_refusal(safetensors_bytes(two("[4,12]"), 12)),
              HasSubstr("tensor b: expected data from offset 8, got 4; tensors must not overlap"));
  EXPECT_THAT(safetensors_refusal(safetensors_bytes(two("[12,20]"), 20)),
              HasSubstr("tensor b: expected data from offset 8, got 12"));
  EXPECT_THAT(safetensors_refusal(safetensors_bytes(two("[8,16]"), 12)),
              HasSubstr("tensor b: expected data within 12 bytes, got offsets up to 16"));
  EXPECT_THAT(safetensors_refusal(safetensors_bytes(two("[8,16]"), 20)),
              HasSubstr("expected 16 bytes of data, got 20"));
}

TEST(BrokenSafetensors, ThatNameATensorTwice) {
  EXPECT_THAT(safetensors_refusal(
                  safetensors_bytes(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
                                    R"("a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
                                    8)),
              HasSubstr("without duplicate keys, got \"a\" twice"));
}

class LoadStateDict : public testing::Test {
 protected:
  LoadStateDict() : model_(tiny_options()), before_(clone(state_dict(*model_))) {}

  static TensorMap clone(const TensorMap& tensors) {
    TensorMap copy;
    for (const auto& [name, tensor] : tensors) copy.emplace(name, tensor.clone());
    return copy;
  }

  /// The error message for loading; checks that nothing has changed.
  std::string safetensors_refusal(const TensorMap& tensors) {
    std::string message = "not refused";
    try {
      load_state_dict(*model_, tensors);
    } catch (const c10::ValueError& error) {
      message = error.what_without_backtrace();
    }
    for (const auto& [name, tensor] : state_dict(*model_)) {
      EXPECT_TRUE(torch::equal(tensor, before_.at(name))) << name;
    }
    return message;
  }

  models::PatchTST model_;
  TensorMap before_;
};

TEST_F(LoadStateDict, CopiesAndCasts) {
  TensorMap other;
  for (const auto& [name, tensor] : before_) {
    other.emplace(name, tensor.is_floating_point() ? (tensor + 1).to(torch::kDouble) : tensor + 1);
  }
  other["loss.quantiles"] = other["valid_loss.quantiles"] = torch::ones({3});
  load_state_dict(*model_, other);
  for (const auto& [name, tensor] : state_dict(*model_)) {
    EXPECT_TRUE(torch::equal(tensor, before_.at(name) + 1)) << name;
  }
}

TEST_F(LoadStateDict, RejectsMissingNames) {
  TensorMap other = clone(before_);
  for (auto& [name, tensor] : other) {
    if (tensor.is_floating_point()) tensor += 1;
  }
  other.erase("model.head.linear.bias");
  EXPECT_THAT(safetensors_refusal(other), HasSubstr("missing (1): model.head.linear.bias"));
}

TEST_F(LoadStateDict, RejectsUnexpectedNames) {
  TensorMap other = clone(before_);
  other["model.tail.linear.bias"] = torch::zeros({1});
  EXPECT_THAT(safetensors_refusal(other), HasSubstr("unexpected (1): model.tail.linear.bias"));
}

TEST_F(LoadStateDict, RejectsWrongShapesAndKinds) {
  TensorMap other = clone(before_);
  other["model.head.linear.bias"] = torch::zeros({5});
  other["model.backbone.W_P.bias"] = torch::zeros({8}, torch::kLong);
  EXPECT_THAT(safetensors_refusal(other),
              AllOf(HasSubstr("of another shape or kind (2)"),
                    HasSubstr("model.head.linear.bias expected Float [4], got Float [5]"),
                    HasSubstr("model.backbone.W_P.bias expected Float [8], got Long [8]")));
}

}  // namespace
}  // namespace flash::tests
