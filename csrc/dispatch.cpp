// The C interface: picks the variant for an instruction set.
#include <algorithm>

#include "native.h"
#include "pool.h"
#include "step.h"

#if defined(__x86_64__)
#include <cpuid.h>

#if __has_include("amx.h")
#define HAS_AMX 1
#else
#define HAS_AMX 0
void qk::forward_amx(const Forward &) {}
bool qk::amx_available() { return false; }
#endif

// Conversion of half precision; not every compiler's __builtin_cpu_supports knows it.
static bool has_f16c() {
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#endif

extern "C" void qk_abi(int64_t out[9]) {
  const int64_t values[] = {QK_ABI_VERSION,  sizeof(QkLayer), sizeof(QkModel),  sizeof(QkPool),  sizeof(QkLora),
                            sizeof(QkAdapter), sizeof(QkSpan),  sizeof(QkMatrix), sizeof(QkLinear)};
  std::copy(values, values + 9, out);
}

extern "C" int32_t qk_best_isa() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !has_f16c()) return QK_PORTABLE;
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq"))
    return HAS_AMX && qk::amx_available() ? QK_AMX : QK_AVX512;
  return QK_AVX2;
#endif
  return QK_PORTABLE;
}

extern "C" int32_t qk_forward(const QkModel *model, const QkPool *pool, int32_t num_spans, const QkSpan *spans,
                              const int64_t *tokens, int32_t num_rows, const int64_t *rows, float *out, int32_t hidden,
                              int32_t threads, int32_t isa) {
  if (isa > qk_best_isa()) return QK_NO_ISA;
  int total = 0;
  for (int i = 0; i < num_spans; ++i) total += static_cast<int>(spans[i].count);
  try {
    const qk::Forward forward{model, pool, spans, tokens, rows, out, num_spans, num_rows, total,
                              qk::ready_threads(threads), hidden != 0};
#if defined(__x86_64__)
    if (HAS_AMX && isa == QK_AMX && model->type == QK_BF16 && model->head_dim % 32 == 0)
      return qk::forward_amx(forward), QK_DONE;
    if (isa >= QK_AVX512) return qk::forward_avx512(forward), QK_DONE;
    if (isa == QK_AVX2) return qk::forward_avx2(forward), QK_DONE;
#endif
    return qk::forward_portable(forward), QK_DONE;
  } catch (...) {  // only setting up throws, and only for want of memory
    return QK_NO_MEMORY;
  }
}
