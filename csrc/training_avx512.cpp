// What training needs besides products, for CPUs with AVX512.
#if defined(__x86_64__)
#include <algorithm>
#include <cstring>

#include "training.h"

// From here on only: inline functions of the standard headers above must stay runnable on every CPU.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")
#endif

#include "training.inc"

namespace qk {

const TrainingKernels kTrainingAvx512{drop, unpack};

}  // namespace qk

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
