#include "csrc/avx512/vec.h"
#include "tests/csrc/exp_check.h"

namespace flash {

ExpReport avx512_exp_float() { return check_exp<Vec<float>>(); }
ExpReport avx512_exp_double() { return check_exp<Vec<double>>(); }

}  // namespace flash
