// The C interface: picks the variant for an instruction set.
#include <algorithm>

#include "native.h"
#include "pool.h"
#include "step.h"

#if defined(__x86_64__)
#include <cpuid.h>

// Conversion of half precision; not every compiler's __builtin_cpu_supports knows it.
static bool has_f16c() {
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#endif

extern "C" void qk_abi(int64_t out[4]) {
  const int64_t values[] = {QK_ABI_VERSION, sizeof(QkLayer), sizeof(QkModel), sizeof(QkSequence)};
  std::copy(values, values + 4, out);
}

extern "C" int32_t qk_best_isa() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !has_f16c()) return QK_PORTABLE;
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq"))
    return QK_AVX512;
  return QK_AVX2;
#endif
  return QK_PORTABLE;
}

extern "C" int32_t qk_decode(const QkModel *model, int32_t batch, const int64_t *tokens, const QkSequence *sequences,
                             float *logits, int32_t threads, int32_t isa) {
  if (isa > qk_best_isa()) return QK_NO_ISA;
  try {
    const qk::Step step{model, sequences, tokens, logits, batch, qk::ready_threads(threads)};
#if defined(__x86_64__)
    if (isa == QK_AVX512) return qk::decode_avx512(step), QK_DONE;
    if (isa == QK_AVX2) return qk::decode_avx2(step), QK_DONE;
#endif
    return qk::decode_portable(step), QK_DONE;
  } catch (...) {  // only setting up throws, and only for want of memory
    return QK_NO_MEMORY;
  }
}
