# Finds Torch at the version that requirements.txt names, or stops with the command that provides
# it.
#
# The operator uses Torch's C++ interface, which changes between releases: code compiled against one
# and run on another crashes, so nothing but the named version will do.

set(_requirements ${CMAKE_CURRENT_LIST_DIR}/../requirements.txt)
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${_requirements})
file(STRINGS ${_requirements} _torch_line REGEX "^torch==")
string(REGEX REPLACE "^torch==([0-9.]+).*" "\\1" FLASH_ATTENTION_TORCH_VERSION "${_torch_line}")

# Torch's own configuration warns of a library (kineto) that its wheel does not hold and nothing
# here needs.
set(CMAKE_MESSAGE_LOG_LEVEL ERROR)
find_package(Torch QUIET)
unset(CMAKE_MESSAGE_LOG_LEVEL)
if(NOT Torch_FOUND OR NOT Torch_VERSION VERSION_EQUAL FLASH_ATTENTION_TORCH_VERSION)
  if(Torch_FOUND)
    set(_found "Torch ${Torch_VERSION} in ${Torch_DIR}")
  else()
    set(_found "none")
  endif()
  message(FATAL_ERROR
    "FlashAttention: expected Torch ${FLASH_ATTENTION_TORCH_VERSION}, found ${_found}. Run\n"
    "    python3 -m pip install torch==${FLASH_ATTENTION_TORCH_VERSION}\n"
    "and configure a fresh build directory with\n"
    "    -DCMAKE_PREFIX_PATH="
    "\"$(python3 -c 'import torch; print(torch.utils.cmake_prefix_path)')\"")
endif()
