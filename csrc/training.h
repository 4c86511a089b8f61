// What training needs besides products, on the instruction sets that are worth a variant.
#pragma once
#include <cstdint>

#include "native.h"

namespace qk {

// Numbers that are worked on at once, by one thread.
constexpr int64_t kPiece = 1 << 14;

// Columns of words whose scales and zeros are unpacked together.
constexpr int64_t kColumns = 512;

struct Dropout {
  const void *x;
  void *out;
  int64_t count;
  QkType type;
  uint32_t keys[2], threshold;
  float scale;
};

struct TrainingKernels {
  // Numbers `from` up to `to`.
  void (*drop)(const Dropout &job, int64_t from, int64_t to);
  // Inputs `from` up to `to`; of GEMV: outputs.
  void (*unpack)(const QkWords &words, void *out, QkType type, int64_t from, int64_t to);
};

extern const TrainingKernels kTrainingPortable, kTrainingAvx2, kTrainingAvx512;

}  // namespace qk
