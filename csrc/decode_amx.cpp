// The forward pass for CPUs with AMX tiles, and whether this is one.
#if defined(__x86_64__)
#include "amx.h"

#if defined(__linux__) && defined(__has_include)
#if __has_include(<amxbf16intrin.h>)
#define QK_HAS_AMX 1
#endif
#endif

#if !QK_HAS_AMX
bool qk::amx_available() { return false; }
void qk::forward_amx(const Forward &forward) { forward_avx512(forward); }
#else
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "pool.h"

static bool request_tiles() {
  unsigned a, b, c, d;
  __builtin_cpu_init();
  for (const bool there : {__builtin_cpu_supports("avx512f") > 0, __builtin_cpu_supports("avx512bw") > 0,
                           __builtin_cpu_supports("avx512vl") > 0, __builtin_cpu_supports("avx512dq") > 0})
    if (!there) return false;
  constexpr unsigned bf16 = 1u << 22, tile = 1u << 24;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d & bf16) || !(d & tile)) return false;
  if (!__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a & 1u << 5)) return false;  // AVX512_BF16
  constexpr long request = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM: the system saves tiles only where asked to
  return syscall(SYS_arch_prctl, request, tile_data) == 0;
}

bool qk::amx_available() {
  static const bool available = request_tiles();
  return available;
}

// From here on only: inline functions of the standard headers above must stay runnable on every CPU.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c,amx-tile,amx-bf16"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c,amx-tile,amx-bf16")
#endif

#include "amx_heads.h"

void qk::forward_amx(const Forward &forward) {
  if (!amx_can_run(*forward.model)) return forward_avx512(forward);
  if (forward.total == 0) return;
  Network network(forward);
  run_parallel(forward.threads, [](void *n, int thread) { static_cast<Network *>(n)->run(thread); }, &network);
}

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
#endif
