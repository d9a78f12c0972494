# flash_find_torch(<releases> [folder]): defines the imported target FlashAttention::torch for the
# installed torch, a CPU or a CUDA build. Used by the build and by find_package(FlashAttention).
#
# find_package(Torch) is not used because, with a CUDA build of torch, it requires the CUDA toolkit, which
# code for the CPU does not need. The search order is: the target `torch` of a project that has called
# find_package(Torch) itself; Torch_DIR or CMAKE_PREFIX_PATH, as for find_package(Torch); the folder;
# the torch that `python3` imports.
#
# <releases>: the accepted ones, as "2.13;2.14". Sets FLASH_TORCH_VERSION, FLASH_TORCH_RELEASE and
# FLASH_TORCH_LIBRARY_DIR, or sets FLASH_TORCH_PROBLEM to an error message that says how to fix it.

# The version in the headers of <include>, or an empty string.
function(_flash_torch_version include result)
  set(version)
  foreach(header torch/headeronly/version.h torch/csrc/api/include/torch/version.h)
    if(NOT version AND EXISTS ${include}/${header})
      file(STRINGS ${include}/${header} lines
           REGEX "^#define TORCH_VERSION_(MAJOR|MINOR|PATCH) [0-9]+")
      string(REGEX REPLACE "#define TORCH_VERSION_[A-Z]+ ([0-9]+)" "\\1" version "${lines}")
      list(JOIN version "." version)
    endif()
  endforeach()
  set(${result} "${version}" PARENT_SCOPE)
endfunction()

# The include folder of the torch to use, or an empty string. [folder] is searched too.
function(_flash_torch_include result)
  if(TARGET torch)
    foreach(property IMPORTED_LOCATION IMPORTED_LOCATION_RELEASE IMPORTED_LOCATION_RELWITHDEBINFO
                     IMPORTED_LOCATION_DEBUG IMPORTED_LOCATION_NOCONFIG)
      get_target_property(library torch ${property})
      if(library)
        cmake_path(GET library PARENT_PATH folder)
        set(${result} ${folder}/../include PARENT_SCOPE)
        return()
      endif()
    endforeach()
  endif()
  # torch.utils.cmake_prefix_path is <torch>/share/cmake.
  set(found NOTFOUND)
  find_path(found torch/csrc/api/include/torch/torch.h NO_CACHE
            HINTS ${Torch_DIR}/../../.. PATHS ${ARGN} PATH_SUFFIXES include ../../include)
  if(NOT found)
    find_package(Python3 QUIET COMPONENTS Interpreter)
    if(Python3_FOUND)
      execute_process(
        COMMAND ${Python3_EXECUTABLE} -c
                "import importlib.util; print(importlib.util.find_spec('torch').origin)"
        OUTPUT_VARIABLE origin OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
      cmake_path(GET origin PARENT_PATH folder)
      find_path(found torch/csrc/api/include/torch/torch.h NO_CACHE NO_DEFAULT_PATH
                PATHS ${folder}/include)
    endif()
  endif()
  if(found)
    set(${result} ${found} PARENT_SCOPE)
  else()
    set(${result} "" PARENT_SCOPE)
  endif()
endfunction()

function(flash_find_torch releases)
  set(FLASH_TORCH_PROBLEM "" PARENT_SCOPE)
  _flash_torch_include(include ${ARGN})
  set(release)
  if(include)
    file(REAL_PATH ${include} include)
    _flash_torch_version(${include} version)
    string(REGEX REPLACE "^([0-9]+\\.[0-9]+).*" "\\1" release "${version}")
  endif()
  if(NOT release OR NOT release IN_LIST releases)
    list(JOIN releases ", " known)
    list(GET releases -1 newest)
    set(found "none")
    if(include)
      set(found "torch ${version} in ${include}")
    endif()
    string(CONCAT problem
      "expected torch ${known}, found ${found}. Run\n"
      "    python3 -m pip install \"torch==${newest}.*\"\n"
      "and configure a fresh build directory with\n"
      "    -DCMAKE_PREFIX_PATH="
      "\"$(python3 -c 'import torch; print(torch.utils.cmake_prefix_path)')\"")
    set(FLASH_TORCH_PROBLEM "${problem}" PARENT_SCOPE)
    return()
  endif()

  cmake_path(SET folder NORMALIZE ${include}/../lib)
  if(NOT TARGET FlashAttention::torch)
    add_library(FlashAttention::torch INTERFACE IMPORTED GLOBAL)
    target_include_directories(FlashAttention::torch INTERFACE
      ${include} ${include}/torch/csrc/api/include)
    # All wheels of these releases use the C++11 ABI of std::string.
    target_compile_definitions(FlashAttention::torch INTERFACE _GLIBCXX_USE_CXX11_ABI=1)
    target_compile_features(FlashAttention::torch INTERFACE cxx_std_20)
    target_link_libraries(FlashAttention::torch INTERFACE
      ${folder}/libtorch_cpu.so ${folder}/libc10.so)
  endif()
  set(FLASH_TORCH_VERSION ${version} PARENT_SCOPE)
  set(FLASH_TORCH_RELEASE ${release} PARENT_SCOPE)
  set(FLASH_TORCH_LIBRARY_DIR ${folder} PARENT_SCOPE)
endfunction()
