#pragma once
// For functions of plain loops: compiled for AVX-512, AVX2 and the baseline, of which the loader
// picks one. All that is to be compiled so must be inlined into the function.

#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && !defined(__clang__)
#define FLASH_FUNCTION_CLONES \
  __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define FLASH_FUNCTION_CLONES
#endif
