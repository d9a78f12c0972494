#ifdef FLASH_WITH_CAIRO

#include "train/output/libcairo.h"

#include <c10/util/Exception.h>
#include <dlfcn.h>

namespace flash::models {
namespace {

LibCairo load() {
  void* library = dlopen("libcairo.so.2", RTLD_NOW | RTLD_LOCAL);
  TORCH_CHECK_VALUE(library != nullptr, "--forecast-png: expected Cairo, got ", dlerror(),
                    "; install libcairo2, or use --forecast-csv");
  LibCairo functions;
#define FLASH_CAIRO(name)                                                                        \
  functions.name = reinterpret_cast<decltype(functions.name)>(dlsym(library, "cairo_" #name));   \
  TORCH_CHECK_VALUE(functions.name != nullptr, "--forecast-png: expected cairo_" #name ", got ", \
                    dlerror(), "; install libcairo2 1.12 or newer, or use --forecast-csv");
  FLASH_CAIRO_FUNCTIONS(FLASH_CAIRO)
#undef FLASH_CAIRO
  return functions;
}

}  // namespace

const LibCairo& libcairo() {
  static const LibCairo functions = load();
  return functions;
}

}  // namespace flash::models

#endif
