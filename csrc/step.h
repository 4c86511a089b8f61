// What one forward call is given, and its variants per instruction set.
#pragma once
#include "native.h"

namespace qk {

struct Int8Kernels;

struct Forward {
  const QkModel *model;
  const QkPool *pool;
  const QkSpan *spans;
  const int64_t *tokens;  // (total)
  const int64_t *rows;    // (num_rows), numbers of tokens
  float *out;
  int num_spans, num_rows, total, threads;
  bool hidden;
  const Int8Kernels *int8;  // products of matrices in panels
};

// Each may throw std::bad_alloc, but only before it stores anything.
void forward_portable(const Forward &forward);
#if defined(__x86_64__)
void forward_avx2(const Forward &forward);
void forward_avx512(const Forward &forward);

// bfloat16 models whose head width is divisible by 32, on CPUs with AMX; both are in decode_amx.cpp. A build without
// that file lacks AMX: dispatch.cpp sees that by __has_include("amx.h"), so the header of that name must be there too.
void forward_amx(const Forward &forward);
bool amx_available();  // asks the system for the registers, once; false where there are none
#endif

}  // namespace qk
