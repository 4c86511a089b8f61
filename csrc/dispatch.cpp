// The C interface: picks the variant for an instruction set.
#include "native.h"
#include "step.h"

extern "C" int32_t qk_best_isa() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq"))
    return QK_AVX512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return QK_AVX2;
#endif
  return QK_PORTABLE;
}

extern "C" int32_t qk_decode(const QkModel *model, int32_t batch, const int64_t *tokens, const QkSequence *sequences,
                             float *logits, int32_t threads, int32_t isa) {
  if (isa > qk_best_isa()) return 1;
  const qk::Step step{model, sequences, tokens, logits, batch, threads};
#if defined(__x86_64__)
  if (isa == QK_AVX512) return qk::decode_avx512(step), 0;
  if (isa == QK_AVX2) return qk::decode_avx2(step), 0;
#endif
  return qk::decode_portable(step), 0;
}
