#include "csrc/avx2/vec.h"
#include "tests/csrc/exp_check.h"

namespace flash {

ExpReport avx2_exp_float() { return check_exp<Vec<float>>(); }
ExpReport avx2_exp_double() { return check_exp<Vec<double>>(); }

}  // namespace flash
