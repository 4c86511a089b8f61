// Products with 8-bit activations for CPUs with AVX512-VNNI, up to eight tokens at a time: weights are read once, at the
// speed of memory where there are few tokens.
#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>

#include <cmath>

#include "int8.h"

bool qk::vnni_available() {
  unsigned a, b, c, d;
  __builtin_cpu_init();
  for (const bool there : {__builtin_cpu_supports("avx512f") > 0, __builtin_cpu_supports("avx512bw") > 0,
                           __builtin_cpu_supports("avx512vl") > 0, __builtin_cpu_supports("avx512dq") > 0})
    if (!there) return false;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (c & 1u << 11);
}

// From here on only: inline functions of the standard headers above must stay runnable on every CPU.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")
#endif

#include "int8_vnni.h"

namespace qk {

const Int8Kernels kInt8Vnni{int8_vnni::round_rows, int8_vnni::product};

}  // namespace qk

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
