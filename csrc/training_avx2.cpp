// What training needs besides products, for CPUs with AVX2.
#if defined(__x86_64__)
#include <algorithm>
#include <cstring>

#include "training.h"

// From here on only: inline functions of the standard headers above must stay runnable on every CPU.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif

#include "training.inc"

namespace qk {

const TrainingKernels kTrainingAvx2{drop, unpack};

}  // namespace qk

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
