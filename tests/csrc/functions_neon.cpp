#include "csrc/neon/vec.h"
#include "tests/csrc/exp_check.h"
#include "tests/csrc/storage_check.h"
#include "tests/csrc/tanh_check.h"

namespace flash {

ExpReport neon_exp_float() { return check_exp<Vec<float>>(); }
ExpReport neon_exp_double() { return check_exp<Vec<double>>(); }
double neon_exp_of_every_float() { return check_exp_of_every_float<Vec<float>>(); }
TanhReport neon_tanh_float() { return check_tanh<Vec<float>>(); }
TanhReport neon_tanh_double() { return check_tanh<Vec<double>>(); }
StorageReport neon_bfloat16() { return check_storage<Vec<float>, BFloat16>(); }
StorageReport neon_half() { return check_storage<Vec<float>, Half>(); }

}  // namespace flash
