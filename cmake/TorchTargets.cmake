# Settings that the targets which include Torch headers share.

# Required: at::parallel_for is serial in code compiled without OpenMP.
find_package(OpenMP REQUIRED)

# flash_openmp(<target>): compiles and links with OpenMP, but leaves the choice of libgomp.so.1 to the
# loader. OpenMP::OpenMP_CXX would link the compiler's copy by path, and put it on the run-time search
# path beside the copy that ships with Torch.
function(flash_openmp target)
  target_compile_options(${target} PRIVATE
    $<TARGET_PROPERTY:OpenMP::OpenMP_CXX,INTERFACE_COMPILE_OPTIONS>)
  target_link_options(${target} PRIVATE ${OpenMP_CXX_FLAGS})
endfunction()

# <torch/torch.h>, precompiled once: parsing it takes 25 s per file.
file(CONFIGURE OUTPUT torch_header.cpp CONTENT "")
add_library(flash_torch_header OBJECT ${CMAKE_CURRENT_BINARY_DIR}/torch_header.cpp)
flash_defaults(flash_torch_header)
flash_openmp(flash_torch_header)
target_link_libraries(flash_torch_header PRIVATE FlashAttention::torch)
target_precompile_headers(flash_torch_header PRIVATE <torch/library.h> <torch/torch.h>)

# Even with the precompiled header, instantiating the templates of Torch's headers takes 10 s per file.
# Compiling sixteen files of a target together takes a fifth of the time; it requires that names in
# anonymous namespaces are unique within a target.
option(FLASH_ATTENTION_UNITY_BUILD "Compile sixteen files that include Torch at a time" ON)

# flash_torch_defaults(<target>): flash_defaults for code that includes Torch headers.
function(flash_torch_defaults target)
  flash_defaults(${target})
  flash_openmp(${target})
  target_precompile_headers(${target} REUSE_FROM flash_torch_header)
  if(FLASH_ATTENTION_UNITY_BUILD)
    # GCC takes the included sources for headers, and warns about their anonymous namespaces.
    target_compile_options(${target} PRIVATE $<$<CXX_COMPILER_ID:GNU>:-Wno-subobject-linkage>)
  endif()
  set_target_properties(${target} PROPERTIES
    UNITY_BUILD ${FLASH_ATTENTION_UNITY_BUILD}
    UNITY_BUILD_BATCH_SIZE 16)
endfunction()
