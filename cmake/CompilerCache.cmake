# Compiles through ccache if it is installed, which saves minutes in a fresh clone or build directory.
# -DCMAKE_CXX_COMPILER_LAUNCHER="" turns it off.

find_program(FLASH_ATTENTION_CCACHE ccache)
if(FLASH_ATTENTION_CCACHE AND NOT DEFINED CMAKE_CXX_COMPILER_LAUNCHER)
  # Paths below this folder are hashed as relative paths, so that clones share cache entries.
  # Precompiled headers are compared by content, not by time.
  set(CMAKE_CXX_COMPILER_LAUNCHER
    ${CMAKE_COMMAND} -E env
    CCACHE_BASEDIR=${CMAKE_CURRENT_SOURCE_DIR} CCACHE_NOHASHDIR=1
    CCACHE_SLOPPINESS=pch_defines,time_macros,include_file_mtime,include_file_ctime
    ${FLASH_ATTENTION_CCACHE})
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    # ccache hashes the preprocessed output, which must name the precompiled header.
    add_compile_options(-fpch-preprocess)
  endif()
endif()
