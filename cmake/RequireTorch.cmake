# Finds a torch that requirements.txt allows, or stops with the command that installs one. The build
# works with that release of torch only, because torch's C++ interface changes between releases.

include(${CMAKE_CURRENT_LIST_DIR}/FlashTorch.cmake)

# torch>=2.13,<2.16: 2.13, 2.14 and 2.15.
set(_requirements ${CMAKE_CURRENT_LIST_DIR}/../requirements.txt)
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${_requirements})
file(STRINGS ${_requirements} _torch_line REGEX "^torch>=2\\.[0-9]+,<2\\.[0-9]+")
string(REGEX MATCH "2\\.([0-9]+),<2\\.([0-9]+)" _range "${_torch_line}")
math(EXPR _last "${CMAKE_MATCH_2} - 1")
set(FLASH_TORCH_RELEASES)
foreach(_minor RANGE ${CMAKE_MATCH_1} ${_last})
  list(APPEND FLASH_TORCH_RELEASES 2.${_minor})
endforeach()

flash_find_torch("${FLASH_TORCH_RELEASES}")
if(FLASH_TORCH_PROBLEM)
  message(FATAL_ERROR "FlashAttention: ${FLASH_TORCH_PROBLEM}")
endif()
message(STATUS "torch ${FLASH_TORCH_VERSION} in ${FLASH_TORCH_LIBRARY_DIR}")
