#include "csrc/avx2/vec.h"
#include "tests/csrc/exp_check.h"
#include "tests/csrc/storage_check.h"
#include "tests/csrc/tanh_check.h"

namespace flash {

ExpReport avx2_exp_float() { return check_exp<Vec<float>>(); }
ExpReport avx2_exp_double() { return check_exp<Vec<double>>(); }
double avx2_exp_of_every_float() { return check_exp_of_every_float<Vec<float>>(); }
TanhReport avx2_tanh_float() { return check_tanh<Vec<float>>(); }
TanhReport avx2_tanh_double() { return check_tanh<Vec<double>>(); }
StorageReport avx2_bfloat16() { return check_storage<Vec<float>, BFloat16>(); }
StorageReport avx2_half() { return check_storage<Vec<float>, Half>(); }

}  // namespace flash
