# Settings that all targets of this project share.

# flash_defaults(<target>): C++20, warnings, and only FLASH_API symbols exported.
function(flash_defaults target)
  target_compile_features(${target} PUBLIC cxx_std_20)
  # -fPIC also for programs: the precompiled header of Torch requires the same flags everywhere.
  target_compile_options(${target} PRIVATE -Wall -Wextra -fPIC)
  set_target_properties(${target} PROPERTIES
    CXX_EXTENSIONS OFF
    CXX_VISIBILITY_PRESET hidden
    VISIBILITY_INLINES_HIDDEN ON
    DEFINE_SYMBOL "")
endfunction()
