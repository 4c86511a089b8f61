// The forward call for CPUs with AVX2.
#if defined(__x86_64__)
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <new>
#include <type_traits>
#include <vector>

#include "int8.h"
#include "matrix.h"
#include "pool.h"
#include "step.h"
#include <immintrin.h>

// From here on only: inline functions of the standard headers above must stay runnable on every CPU.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif

#include "vector_avx2.h"
#include "types.inc"
#include "product.inc"
#include "packed.inc"
#include "cache.inc"
#include "attention.inc"
#include "rounded.inc"
#include "step.inc"

void qk::forward_avx2(const Forward &forward) { forward_all(forward); }

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
