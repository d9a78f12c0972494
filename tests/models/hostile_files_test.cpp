// Files and options made to crash, hang or fill the memory: each gives an error message.

#include <flash_attention/models/checkpoint.h>
#include <flash_attention/models/registry.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <torch/torch.h>

#include <chrono>
#include <filesystem>

#include "message_text.h"
#include "models/fixture.h"
#include "models/safetensors_bytes.h"
#include "models/temporary_file.h"
#include "storage/json_text.h"

namespace flash::tests {
namespace {

using models::read_safetensors;
using nlohmann::json;
using testing::AllOf;
using testing::EndsWith;
using testing::HasSubstr;

// A path, the text around a quotation, and 200 quoted bytes, each of which may need escaping.
constexpr size_t kLongestMessage = 2000;

/// The message of the call's c10::ValueError. Anything else fails the test.
template <class Call>
std::string refusal_of(const Call& call) {
  try {
    call();
  } catch (const c10::ValueError& error) {
    const std::string message = error.what_without_backtrace();
    EXPECT_LT(message.size(), kLongestMessage);
    EXPECT_NO_THROW(json(message).dump()) << "no UTF-8, which Python could not show";
    return message;
  }
  return "not refused";
}

std::string refusal_of_header(const std::string& header, size_t data_bytes = 0) {
  const TemporaryFile file(".safetensors", safetensors_bytes(header, data_bytes));
  return refusal_of([&] { read_safetensors(file.path()); });
}

std::string times_over(const std::string& text, int64_t times) {
  std::string all;
  for (int64_t i = 0; i < times; ++i) all += text;
  return all;
}

/// Three ways to nest: arrays, objects, and both, closed or truncated.
std::vector<std::string> deep_values(int64_t depth) {
  return {times_over("[", depth), times_over("[", depth) + times_over("]", depth),
          times_over("{\"k\":", depth), times_over("{\"k\":", depth) + "1" + times_over("}", depth),
          times_over("[{\"k\":", depth) + "1" + times_over("}]", depth)};
}

TEST(HostileSafetensors, NestedAMillionLevels) {
  for (const std::string& value : deep_values(1'000'000)) {
    for (const std::string name : {"a", "__metadata__"}) {
      const std::string header = "{\"" + name + "\":" + value + "}";
      EXPECT_THAT(refusal_of_header(header), HasSubstr("nested at most 64 deep, got more"));
    }
  }
}

TEST(HostileSafetensors, WhoseMetadataIsNestedAMillionLevels) {
  for (const std::string& value : deep_values(1'000'000)) {
    for (const std::string key : {"hyper_parameters", "shared", "fourier_index"}) {
      models::SafetensorsFile file;
      file.metadata = {{"model_class", "PatchTST"}, {"hyper_parameters", "{}"}};
      file.metadata[key] = "{\"loss\":" + value + "}";
      const auto load = [&] { models::load_model(file); };
      if (key == "shared") {  // ignored by load_model and kept by save_model
        const auto model = models::make_model("PatchTST", R"({"h": 2, "input_size": 16})");
        EXPECT_THAT(refusal_of([&] { save_model("/nonexistent/model", *model, file); }),
                    HasSubstr("expected shared as a JSON object nested at most 64 deep"));
      } else {
        EXPECT_THAT(refusal_of(load),
                    HasSubstr("expected " + key + " as a JSON object nested at most 64 deep"));
      }
    }
  }
}

TEST(HostileSafetensors, WithHalfAMillionTensorsAreReadInLinearTime) {
  const auto seconds_for = [](int64_t tensors) {
    std::string header = "{";
    for (int64_t i = 0; i < tensors; ++i) {
      header += (i > 0 ? ",\"" : "\"") + std::to_string(i) +
                R"(":{"dtype":"F32","shape":[0],"data_offsets":[0,0]})";
    }
    const TemporaryFile file(".safetensors", safetensors_bytes(header + "}"));
    const auto start = std::chrono::steady_clock::now();
    EXPECT_EQ(read_safetensors(file.path()).tensors.size(), static_cast<size_t>(tensors));
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
  // 10 times the tensors take 10 times as long, plus cache effects; in quadratic time it would be
  // 100 times.
  const double few = seconds_for(20'000);
  EXPECT_LT(seconds_for(200'000), 40 * few);
}

TEST(HostileSafetensors, WhoseEmptyTensorsHaveStridesThatOverflow) {
  // Nothing is stored, but strides are products of the sizes other than 0.
  for (const std::string shape : {"[0,4611686018427387904,4]", "[9223372036854775807,0,2]"}) {
    EXPECT_THAT(
        refusal_of_header(R"({"a":{"dtype":"F32","shape":)" + shape + R"(,"data_offsets":[0,0]}})"),
        HasSubstr("tensor a: expected data_offsets that span shape " + shape));
  }
}

TEST(HostileSafetensors, WithTooManyDimensions) {
  const auto with_ones = [](int64_t dimensions) {
    return R"({"a":{"dtype":"U8","shape":[)" + times_over("1,", dimensions - 1) +
           R"(1],"data_offsets":[0,1]}})";
  };
  EXPECT_EQ(refusal_of_header(with_ones(64), 1), "not refused");
  EXPECT_THAT(refusal_of_header(with_ones(65), 1),
              HasSubstr("tensor a: expected at most 64 dimensions, got 65"));
  EXPECT_THAT(refusal_of_header(with_ones(1'000'000), 1), HasSubstr("got 1000000"));
}

TEST(HostileSafetensors, WithADuplicateKey) {
  const std::string tensor = R"("a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]})";
  EXPECT_THAT(
      refusal_of_header("{" + tensor + "," + tensor + "}", 4),
      HasSubstr("expected a JSON object as header without duplicate keys, got \"a\" twice"));
  EXPECT_THAT(refusal_of_header(R"({"a":{"dtype":"F32","shape":[1],"shape":[2]}})", 4),
              HasSubstr("got \"shape\" twice"));
  EXPECT_THAT(refusal_of_header(R"({"__metadata__":{"k":"1","k":"2"}})"),
              HasSubstr("got \"k\" twice"));
}

TEST(HostileSafetensors, ThatAreNotUtf8) {
  EXPECT_THAT(refusal_of_header("{\"\xff\xfe\":1}"),
              AllOf(HasSubstr("expected a JSON object as header, got \"{"),
                    HasSubstr("which is not JSON at byte 3")));
  EXPECT_THAT(refusal_of_header("{\"a\":\"\xc3\"}"), HasSubstr("which is not JSON at byte"));
  EXPECT_THAT(refusal_of_header(std::string("{\"a\0\":1}", 8)), HasSubstr("{\\\"a\\u0000"));
  EXPECT_THAT(refusal_of_header("{\"a\\u0000\\n\":1}"), HasSubstr("tensor a\\u0000\\n: expected"));
}

TEST(HostileSafetensors, AreQuotedInPart) {
  const std::string megabyte(1'000'000, 'x'), umlauts = times_over("ü", 500'000);
  for (const std::string& text : {megabyte, umlauts}) {
    const std::vector<std::string> headers = {
        "{\"" + text + "\":1}",
        "{\"a\":\"" + text + "\"}",
        "{\"a\":[\"" + text + "\"]}",
        "{\"__metadata__\":\"" + text + "\"}",
        "{\"__metadata__\":{\"" + text + "\":1}}",
        "{\"__metadata__\":{\"k\":[\"" + text + "\"]}}",
        "{\"a\":{\"dtype\":\"" + text + "\",\"shape\":[],\"data_offsets\":[0,4]}}",
        "{\"a\":{\"dtype\":\"F32\",\"shape\":\"" + text + "\",\"data_offsets\":[0,4]}}",
        "{\"a\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":\"" + text + "\"}}",
        "{\"" + text + "\":1,\"" + text + "\":2}",
        "{" + text,
        "[\"" + text + "\"]"};
    for (const std::string& header : headers) {
      EXPECT_THAT(refusal_of_header(header, 4), HasSubstr("...")) << header.substr(0, 40);
    }
  }
}

TEST(HostileSafetensors, ThatAreNotRegularFiles) {
  const TemporaryFile pipe(".pipe");
  ASSERT_EQ(mkfifo(pipe.path().c_str(), 0600), 0);  // opening it would wait for a writer
  for (const std::string& path : {pipe.path(), std::string("/tmp"), std::string("/dev/zero")}) {
    EXPECT_THAT(refusal_of([&] { read_safetensors(path); }), HasSubstr("cannot be read"));
  }
}

TEST(HostileSafetensors, LargerThanTheMemory) {
  constexpr uint64_t kBytes = 1ULL << 42;  // a sparse file
  const std::string header = R"({"a":{"dtype":"U8","shape":[)" + std::to_string(kBytes) +
                             R"(],"data_offsets":[0,)" + std::to_string(kBytes) + "]}}";
  const TemporaryFile file(".safetensors", safetensors_bytes(header));
  std::error_code error;
  std::filesystem::resize_file(file.path(), 8 + header.size() + kBytes, error);
  if (error) GTEST_SKIP() << "this file system has no files of 4 TB: " << error.message();
  EXPECT_THAT(refusal_of([&] { read_safetensors(file.path()); }),
              AllOf(HasSubstr("which this machine has available"), EndsWith("4.4e+03 GB")));
}

// --- hyperparameters and options

const std::map<std::string, std::string> kRequired{
    {"Autoformer", R"({"h": 2, "input_size": 16})"},
    {"FEDformer", R"({"h": 2, "input_size": 16})"},
    {"Informer", R"({"h": 2, "input_size": 16})"},
    {"PatchTST", R"({"h": 2, "input_size": 16})"},
    {"TFT", R"({"h": 2, "input_size": 16})"},
    {"iTransformer", R"({"h": 2, "input_size": 16, "n_series": 1})"}};

json with(const std::string& model_class, const std::string& option, const json& value) {
  json options = json::parse(kRequired.at(model_class));
  options[option] = value;
  return options;
}

/// The options on which a model's size depends.
const std::vector<std::pair<std::string, std::string>> kSizes{{"Autoformer", "hidden_size"},
                                                              {"Autoformer", "conv_hidden_size"},
                                                              {"Autoformer", "encoder_layers"},
                                                              {"Autoformer", "decoder_layers"},
                                                              {"FEDformer", "hidden_size"},
                                                              {"FEDformer", "conv_hidden_size"},
                                                              {"FEDformer", "encoder_layers"},
                                                              {"FEDformer", "decoder_layers"},
                                                              {"FEDformer", "input_size"},
                                                              {"FEDformer", "h"},
                                                              {"Informer", "hidden_size"},
                                                              {"Informer", "conv_hidden_size"},
                                                              {"Informer", "encoder_layers"},
                                                              {"Informer", "decoder_layers"},
                                                              {"PatchTST", "hidden_size"},
                                                              {"PatchTST", "linear_hidden_size"},
                                                              {"PatchTST", "encoder_layers"},
                                                              {"PatchTST", "input_size"},
                                                              {"PatchTST", "h"},
                                                              {"TFT", "hidden_size"},
                                                              {"TFT", "n_rnn_layers"},
                                                              {"TFT", "tgt_size"},
                                                              {"iTransformer", "hidden_size"},
                                                              {"iTransformer", "d_ff"},
                                                              {"iTransformer", "e_layers"},
                                                              {"iTransformer", "input_size"},
                                                              {"iTransformer", "h"}};

TEST(HostileOptions, OfAModelTooLargeForTheMachineAreRejectedBeforeItIsBuilt) {
  for (const auto& [model_class, option] : kSizes) {
    for (const int64_t value : {int64_t{1} << 32, int64_t{1} << 31}) {
      const std::string options = with(model_class, option, value).dump();
      EXPECT_THAT(
          refusal_of([&, name = model_class] { models::make_model(name, options); }),
          AllOf(testing::StartsWith(model_class + ": expected options of a model of at most "),
                HasSubstr("memory that this machine has available")))
          << model_class << " " << option << " " << value;
    }
  }
  EXPECT_THAT(refusal_of([] { models::make_model("TFT", kRequired.at("TFT"), int64_t{1} << 60); }),
              HasSubstr("expected options of a model of at most"));
}

TEST(HostileOptions, OfAModelTooLargeForTheFileAreRejectedBeforeItIsBuilt) {
  for (const auto& [model_class, option] : kSizes) {
    torch::manual_seed(1);
    const auto model = models::make_model(model_class, with(model_class, "h", 2).dump());
    const TemporaryFile path(".safetensors");
    save_model(path.path(), *model);
    auto file = read_safetensors(path.path());
    json parameters = json::parse(file.metadata.at("hyper_parameters"));
    // 5 million times the layers, or the square of the width: the machine might hold it, but it
    // cannot belong to the file.
    parameters[option] = 5'000'000;
    file.metadata["hyper_parameters"] = parameters.dump();
    // Either error: the head's outputs are compared with h before the size is checked.
    EXPECT_THAT(refusal_of([&] { models::load_model(file); }),
                testing::AnyOf(HasSubstr("ample for the"), HasSubstr("memory that this machine"),
                               HasSubstr("of a multiple of h = 5000000 elements")))
        << model_class << " " << option;
  }
}

TEST(HostileOptions, WithHugeNumbersAreRejected) {
  for (const auto& [model_class, required] : kRequired) {
    const json given = json::parse(required);
    const auto model = models::make_model(model_class, required);
    for (const char* option : {"h", "input_size", "hidden_size"}) {
      for (const int64_t value : {INT64_MAX, INT64_MIN, int64_t{-1} << 40}) {
        EXPECT_THAT(refusal_of([&, name = model_class] {
                      models::make_model(name, with(name, option, value).dump());
                    }),
                    HasSubstr("expected option " + std::string(option) +
                              " as a whole number of at most 2^32, got " + std::to_string(value)));
      }
    }
  }
  for (const char* model_class : {"Autoformer", "FEDformer", "Informer"}) {
    for (const double value : {1e300, -1e300, 1e19}) {
      EXPECT_THAT(
          refusal_of([&] {
            models::make_model(model_class,
                               with(model_class, "decoder_input_size_multiplier", value).dump());
          }),
          HasSubstr("expected decoder_input_size_multiplier to leave the decoder between 1"));
    }
  }
}

TEST(HostileOptions, NestedAMillionLevels) {
  for (const std::string& value : deep_values(1'000'000)) {
    const std::string options = "{\"h\":" + value + "}";
    EXPECT_THAT(refusal_of([&] { models::make_model("TFT", options); }),
                HasSubstr("TFT: expected the options as a JSON object nested at most 64 deep"));
    models::SafetensorsFile file;
    EXPECT_THAT(refusal_of([&] { models::load_model(file, {}, options); }),
                HasSubstr("load_model: expected the options as a JSON object nested at most 64"));
  }
}

TEST(HostileOptions, AreQuotedInPart) {
  const std::string megabyte(1'000'000, 'x');
  const auto of_make = [](const std::string& model_class, const std::string& options) {
    return refusal_of([&] { models::make_model(model_class, options); });
  };
  EXPECT_THAT(of_make(megabyte, "{}"), HasSubstr("xxx..."));
  EXPECT_THAT(of_make(megabyte, "[1]"), HasSubstr("expected a model class among"));
  EXPECT_THAT(of_make("\xff", "[1]"), HasSubstr("expected a model class among"));  // no UTF-8
  EXPECT_THAT(of_make("TFT", megabyte), HasSubstr("xxx..."));
  EXPECT_THAT(of_make("TFT", with("TFT", megabyte, 1).dump()), HasSubstr("xxx..."));
  EXPECT_THAT(of_make("TFT", with("TFT", "hidden_size", megabyte).dump()), HasSubstr("xxx..."));
  EXPECT_THAT(of_make("TFT", with("TFT", "rnn_type", megabyte).dump()), HasSubstr("xxx..."));
  EXPECT_THAT(of_make("PatchTST", with("PatchTST", "activation", megabyte).dump()),
              HasSubstr("xxx..."));
  EXPECT_THAT(of_make("Informer", with("Informer", "activation", megabyte).dump()),
              HasSubstr("xxx..."));
  EXPECT_THAT(of_make("FEDformer", with("FEDformer", "version", megabyte).dump()),
              HasSubstr("xxx..."));
  json many = json::array();
  for (int i = 0; i < 200'000; ++i) many.push_back(i / 2);
  EXPECT_THAT(of_make("FEDformer", with("FEDformer", "fourier_index", {{"enc_self", many}}).dump()),
              HasSubstr("..."));
}

TEST(Excerpt, IsShortAndOneLine) {
  EXPECT_EQ(models::excerpt("plain ü"), "plain ü");
  EXPECT_EQ(models::excerpt("a\nb\"c\x01"), "a\\nb\\\"c\\u0001");
  EXPECT_EQ(models::excerpt("\xff"), "\xef\xbf\xbd");  // the replacement character
  EXPECT_EQ(models::excerpt(std::string(200, 'x')), std::string(200, 'x'));
  EXPECT_EQ(models::excerpt(std::string(201, 'x')), std::string(200, 'x') + "...");
  // A character that the limit splits is omitted.
  EXPECT_EQ(models::excerpt(std::string(199, 'x') + "üüü"), std::string(199, 'x') + "...");
  EXPECT_EQ(models::shortened(std::string(198, 'x') + "€€"), std::string(198, 'x') + "...");
}

TEST(JsonText, MayBeNestedSixtyFourLevels) {
  const auto nested = [](int64_t arrays) {
    return "{\"a\":" + times_over("[", arrays) + times_over("]", arrays) + "}";
  };
  EXPECT_EQ(models::parse_json_object(nested(63), "expected").size(), 1u);
  EXPECT_EQ(refusal_of([&] { models::parse_json_object(nested(64), "expected it"); }),
            "expected it nested at most 64 deep, got more");
}

}  // namespace
}  // namespace flash::tests
