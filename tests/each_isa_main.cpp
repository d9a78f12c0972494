// main() of the tests above csrc: runs them once per instruction set, all in one process, so that
// libtorch is loaded once. FLASH_ATTENTION_ISA, where set, limits the run to the one it names.

#include <ATen/core/dispatch/Dispatcher.h>
#include <gmock/gmock.h>

#include <cstdlib>
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

namespace {

// The library exports its operators only.
template <class Signature, class... Arguments>
std::string call(const char* name, Arguments&&... arguments) {
  return c10::Dispatcher::singleton()
      .findSchemaOrThrow(name, "")
      .typed<Signature>()
      .call(std::forward<Arguments>(arguments)...);
}

std::vector<std::string> isas_to_test() {
  const auto info = nlohmann::json::parse(call<std::string()>("flash::_build_info"));
  if (std::getenv("FLASH_ATTENTION_ISA") != nullptr) return {info["active"]};
  std::vector<std::string> names;
  for (const auto& isa : info["isa"]) {
    if (isa["supported"]) names.push_back(isa["name"]);
  }
  return names;
}

// One iteration of GoogleTest's --gtest_repeat is one instruction set.
class EachIsa : public testing::EmptyTestEventListener {
 public:
  explicit EachIsa(std::vector<std::string> isas) : isas_(std::move(isas)) {}

  void OnTestIterationStart(const testing::UnitTest&, int iteration) override {
    const std::string& isa = isas_[iteration % isas_.size()];
    call<std::string(const std::string&)>("flash::_use_isa", isa);
    std::cout << "== kernels: " << isa << std::endl;
  }

 private:
  std::vector<std::string> isas_;
};

}  // namespace

int main(int argc, char** argv) {
  testing::InitGoogleMock(&argc, argv);
  auto isas = isas_to_test();
  GTEST_FLAG_SET(repeat, GTEST_FLAG_GET(repeat) * static_cast<int>(isas.size()));
  testing::UnitTest::GetInstance()->listeners().Append(new EachIsa(std::move(isas)));  // which owns it
  return RUN_ALL_TESTS();
}
