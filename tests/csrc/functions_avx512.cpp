#include "csrc/avx512/vec.h"
#include "tests/csrc/exp_check.h"
#include "tests/csrc/storage_check.h"
#include "tests/csrc/tanh_check.h"

namespace flash {

ExpReport avx512_exp_float() { return check_exp<Vec<float>>(); }
ExpReport avx512_exp_double() { return check_exp<Vec<double>>(); }
double avx512_exp_of_every_float() { return check_exp_of_every_float<Vec<float>>(); }
TanhReport avx512_tanh_float() { return check_tanh<Vec<float>>(); }
TanhReport avx512_tanh_double() { return check_tanh<Vec<double>>(); }
StorageReport avx512_bfloat16() { return check_storage<Vec<float>, BFloat16>(); }
StorageReport avx512_half() { return check_storage<Vec<float>, Half>(); }

}  // namespace flash
