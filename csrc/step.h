// What one decode step is given, and its variants per instruction set.
#pragma once
#include "native.h"

namespace qk {

struct Step {
  const QkModel *model;
  const QkSequence *sequences;
  const int64_t *tokens;
  float *logits;
  int batch, threads;
};

void decode_portable(const Step &step);
#if defined(__x86_64__)
void decode_avx2(const Step &step);
void decode_avx512(const Step &step);
#endif

}  // namespace qk
