# Compiles through ccache where it is installed: a fresh clone, or a build directory made anew, then
# takes minutes less. -DCMAKE_CXX_COMPILER_LAUNCHER="" turns it off.

find_program(FLASH_ATTENTION_CCACHE ccache)
if(FLASH_ATTENTION_CCACHE AND NOT DEFINED CMAKE_CXX_COMPILER_LAUNCHER)
  # Paths below this folder count as relative ones, so that clones share what they compile; ccache
  # checks the content of a precompiled header instead of its time.
  set(CMAKE_CXX_COMPILER_LAUNCHER
    ${CMAKE_COMMAND} -E env
    CCACHE_BASEDIR=${CMAKE_CURRENT_SOURCE_DIR} CCACHE_NOHASHDIR=1
    CCACHE_SLOPPINESS=pch_defines,time_macros,include_file_mtime,include_file_ctime
    ${FLASH_ATTENTION_CCACHE})
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    # Preprocessed output that names the precompiled header, for ccache to hash.
    add_compile_options(-fpch-preprocess)
  endif()
endif()
