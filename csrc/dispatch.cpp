// The C interface: picks the variant for an instruction set.
#include <algorithm>
#include <memory>

#include "int8.h"
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

extern "C" void qk_abi(int64_t out[10]) {
  const int64_t values[] = {QK_ABI_VERSION,  sizeof(QkLayer), sizeof(QkModel),  sizeof(QkPool),  sizeof(QkLora),
                            sizeof(QkAdapter), sizeof(QkSpan),  sizeof(QkMatrix), sizeof(QkLinear), sizeof(QkWords)};
  std::copy(values, values + 10, out);
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

// The products with 8-bit activations of an instruction set.
static const qk::Int8Kernels &int8_kernels(int32_t isa) {
#if defined(__x86_64__)
  static const bool has_vnni = qk::vnni_available(), has_tiles = qk::int8_tiles_available();
  if (isa == QK_AMX && has_tiles) return qk::kInt8Amx;
  if (isa >= QK_AVX512 && has_vnni) return qk::kInt8Vnni;
  if (isa >= QK_AVX2) return qk::kInt8Avx2;
#endif
  return qk::kInt8Portable;
}

extern "C" int32_t qk_forward(const QkModel *model, const QkPool *pool, int32_t num_spans, const QkSpan *spans,
                              const int64_t *tokens, int32_t num_rows, const int64_t *rows, float *out, int32_t hidden,
                              int32_t int8, int32_t threads, int32_t isa) {
  if (isa > qk_best_isa()) return QK_NO_ISA;
  int total = 0;
  for (int i = 0; i < num_spans; ++i) total += static_cast<int>(spans[i].count);
  try {
    const qk::Forward forward{model, pool, spans, tokens, rows, out, num_spans, num_rows, total,
                              qk::ready_threads(threads), hidden != 0, &int8_kernels(isa)};
#if defined(__x86_64__)
    if (HAS_AMX && isa == QK_AMX && model->type == QK_BF16 && model->head_dim % 32 == 0 && !int8)
      return qk::forward_amx(forward), QK_DONE;
    if (isa >= QK_AVX512) return qk::forward_avx512(forward), QK_DONE;
    if (isa == QK_AVX2) return qk::forward_avx2(forward), QK_DONE;
#endif
    return qk::forward_portable(forward), QK_DONE;
  } catch (...) {  // only setting up throws, and only for want of memory
    return QK_NO_MEMORY;
  }
}

namespace {

struct Product {
  const QkMatrix &matrix;
  int64_t n;
  const qk::Int8Kernels &kernels;
  qk::Int8Rows x;
  qk::Int8Results to;
  uint8_t *room;
  int threads;

  void run(int thread) const {
    const int panels = matrix.rows / qk::kPanel, first = panels * thread / threads, end = panels * (thread + 1) / threads;
    kernels.product(matrix, n, first, end - first, x, to.behind(first * qk::kPanel), room + thread * qk::int8_room(n));
  }
};

}  // namespace

extern "C" int32_t qk_int8_product(const QkMatrix *matrix, int64_t n, const float *x, int32_t count, float *out,
                                   int32_t threads, int32_t isa) {
  if (isa > qk_best_isa()) return QK_NO_ISA;
  try {
    const qk::Int8Kernels &kernels = int8_kernels(isa);
    const int ready = qk::ready_threads(threads);
    qk::Int8Buffer buffer(count, n);
    const qk::Int8Rows rows = buffer.rows(count, n, qk::kUnit);
    const qk::Lines<uint8_t> room(ready * qk::int8_room(n));
    kernels.round(x, n, n, rows);
    Product product{*matrix, n, kernels, rows, {out, matrix->rows, false, nullptr, QK_F32}, room.get(), ready};
    qk::run_parallel(ready, [](void *p, int thread) { static_cast<Product *>(p)->run(thread); }, &product);
    return QK_DONE;
  } catch (...) {
    return QK_NO_MEMORY;
  }
}
