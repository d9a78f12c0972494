# What every target of this project shares.

# flash_defaults(<target>): C++20, warnings, position-independent code that exports nothing unless FLASH_API says so.
function(flash_defaults target)
  target_compile_features(${target} PUBLIC cxx_std_20)
  target_compile_options(${target} PRIVATE -Wall -Wextra)
  set_target_properties(${target} PROPERTIES
    POSITION_INDEPENDENT_CODE ON
    CXX_EXTENSIONS OFF
    CXX_VISIBILITY_PRESET hidden
    VISIBILITY_INLINES_HIDDEN ON
    DEFINE_SYMBOL "")
endfunction()

# flash_torch_defaults(<target>): as flash_defaults, for code that includes Torch headers. One precompiled <torch/torch.h>
# serves all of them (25 s once instead of per file), which needs the same flags everywhere.
function(flash_torch_defaults target)
  flash_defaults(${target})
  target_link_libraries(${target} PRIVATE OpenMP::OpenMP_CXX)
  if(NOT TARGET flash_torch_header)
    file(CONFIGURE OUTPUT ${PROJECT_BINARY_DIR}/torch_header.cpp CONTENT "")
    add_library(flash_torch_header OBJECT ${PROJECT_BINARY_DIR}/torch_header.cpp)
    flash_defaults(flash_torch_header)
    target_link_libraries(flash_torch_header PRIVATE OpenMP::OpenMP_CXX torch)
    target_precompile_headers(flash_torch_header PRIVATE <torch/library.h> <torch/torch.h>)
  endif()
  target_precompile_headers(${target} REUSE_FROM flash_torch_header)
endfunction()
