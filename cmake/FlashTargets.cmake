# What every target of this project shares.

# at::parallel_for is serial in code that is not compiled with OpenMP, so it is not optional.
find_package(OpenMP REQUIRED)

# flash_defaults(<target>): C++20, warnings, and nothing exported unless FLASH_API says so.
function(flash_defaults target)
  target_compile_features(${target} PUBLIC cxx_std_20)
  # -fPIC for programs, too: only code compiled alike can share the precompiled header below.
  target_compile_options(${target} PRIVATE -Wall -Wextra -fPIC)
  set_target_properties(${target} PROPERTIES
    CXX_EXTENSIONS OFF
    CXX_VISIBILITY_PRESET hidden
    VISIBILITY_INLINES_HIDDEN ON
    DEFINE_SYMBOL "")
endfunction()

# flash_openmp(<target>): compiles and links with OpenMP, and leaves the choice of libgomp.so.1 to
# the loader. To name the compiler's own, as OpenMP::OpenMP_CXX does, would put it beside the copy
# that Torch brings in the run-time search path.
function(flash_openmp target)
  target_compile_options(${target} PRIVATE
    $<TARGET_PROPERTY:OpenMP::OpenMP_CXX,INTERFACE_COMPILE_OPTIONS>)
  target_link_options(${target} PRIVATE ${OpenMP_CXX_FLAGS})
endfunction()

# One <torch/torch.h>, compiled once (25 s, instead of as much for every file).
file(CONFIGURE OUTPUT torch_header.cpp CONTENT "")
add_library(flash_torch_header OBJECT ${CMAKE_CURRENT_BINARY_DIR}/torch_header.cpp)
flash_defaults(flash_torch_header)
flash_openmp(flash_torch_header)
target_link_libraries(flash_torch_header PRIVATE FlashAttention::torch)
target_precompile_headers(flash_torch_header PRIVATE <torch/library.h> <torch/torch.h>)

# Torch's headers leave templates behind that the compiler instantiates anew for every file, in 10 s,
# with the precompiled header, too. So the files of a target are compiled sixteen at a time, which takes
# a fifth of the time; names in their anonymous namespaces have to differ within a target.
option(FLASH_ATTENTION_UNITY_BUILD "Compile sixteen files that include Torch at a time" ON)

# flash_torch_defaults(<target>): as flash_defaults, for code that includes Torch headers.
function(flash_torch_defaults target)
  flash_defaults(${target})
  flash_openmp(${target})
  target_precompile_headers(${target} REUSE_FROM flash_torch_header)
  if(FLASH_ATTENTION_UNITY_BUILD)
    # For GCC an anonymous namespace in an included file is one of a header.
    target_compile_options(${target} PRIVATE $<$<CXX_COMPILER_ID:GNU>:-Wno-subobject-linkage>)
  endif()
  set_target_properties(${target} PROPERTIES
    UNITY_BUILD ${FLASH_ATTENTION_UNITY_BUILD}
    UNITY_BUILD_BATCH_SIZE 16)
endfunction()
