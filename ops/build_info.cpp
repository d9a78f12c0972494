// The version of the library, the torch that it was built against, and the kernels in it.

#include <flash_attention/version.h>
#include <torch/library.h>
#include <torch/version.h>

#include <sstream>
#include <stdexcept>

#include "csrc/dispatch.h"

namespace flash {
namespace {

std::string build_info() {
  std::ostringstream json;
  const char* active = nullptr;
  try {
    active = active_kernels().name;
  } catch (const std::invalid_argument& error) {
    TORCH_CHECK_VALUE(false, "flash::attention: ", error.what());
  }
  json << R"({"version": ")" << FLASH_ATTENTION_VERSION << R"(", "torch": ")" << TORCH_VERSION
       << R"(", "active": ")" << active << R"(", "isa": [)";
  const char* separator = "";
  for (const KernelTable* table : all_kernels()) {
    json << separator << R"({"name": ")" << table->name << R"(", "description": ")"
         << table->description << R"(", "supported": )" << (table->supported() ? "true" : "false")
         << "}";
    separator = ", ";
  }
  json << "]}";
  return json.str();
}

// For tests: makes the named kernels active in all threads. Returns the name of the previous ones.
std::string use_isa(const std::string& name) {
  TORCH_CHECK_VALUE(!name.empty(),
                    "flash::_use_isa: expected the name of an instruction set, got an empty one");
  try {
    return use_kernels(name.c_str()).name;
  } catch (const std::invalid_argument& error) {
    TORCH_CHECK_VALUE(false, "flash::_use_isa: ", error.what());
  }
}

}  // namespace
}  // namespace flash

TORCH_LIBRARY_FRAGMENT(flash, m) {
  m.def("_build_info() -> str", flash::build_info);
  m.def("_use_isa(str name) -> str", flash::use_isa);
}
