// The C interface to what training needs besides products.
#include "training.h"

#include <algorithm>
#include <atomic>

#include "pool.h"

namespace {

const qk::TrainingKernels &kernels([[maybe_unused]] int32_t isa) {
#if defined(__x86_64__)
  if (isa >= QK_AVX512) return qk::kTrainingAvx512;
  if (isa == QK_AVX2) return qk::kTrainingAvx2;
#endif
  return qk::kTrainingPortable;
}

// Calls run(from, to) for pieces of a range until all are done. Threads take a piece whenever they are free: another
// program may have the core of one of them.
template <class Run>
void in_pieces(int64_t count, int64_t piece, QkParallel parallel, int32_t threads, const Run &run) {
  struct Job {
    std::atomic<int64_t> next{0};
    const int64_t count, piece;
    const Run &run;
  } job{{}, count, piece, run};
  const auto work = [](void *context) {
    Job &own = *static_cast<Job *>(context);
    for (int64_t from; (from = own.next.fetch_add(own.piece)) < own.count;) own.run(from, std::min(from + own.piece, own.count));
  };
  const int useful = static_cast<int>(std::min<int64_t>(threads, (count + piece - 1) / piece));
  if (useful <= 1) return work(&job);
  if (parallel) return parallel(work, &job, static_cast<uint32_t>(useful), 0);
  struct Call {
    void (*work)(void *);
    void *job;
  } call{work, &job};
  const auto one = [](void *context, int) { static_cast<Call *>(context)->work(static_cast<Call *>(context)->job); };
  qk::run_parallel(qk::ready_threads(useful), one, &call);
}

}  // namespace

extern "C" int32_t qk_dropout(const void *x, void *out, int64_t count, int32_t type, uint64_t seed, uint32_t threshold,
                              float scale, QkParallel parallel, int32_t threads, int32_t isa) {
  if (isa > qk_best_isa()) return QK_NO_ISA;
  const qk::Dropout job{x, out, count, static_cast<QkType>(type), {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)},
                        threshold, scale};
  const auto drop = kernels(isa).drop;
  in_pieces(count, qk::kPiece, parallel, threads, [&](int64_t from, int64_t to) { drop(job, from, to); });
  return QK_DONE;
}

extern "C" int32_t qk_unpack_words(const QkWords *words, void *out, int32_t type, QkParallel parallel, int32_t threads,
                                   int32_t isa) {
  if (isa > qk_best_isa()) return QK_NO_ISA;
  const bool by_outputs = words->kind == QK_GEMV;
  const int64_t rows = by_outputs ? words->n : words->k, columns = by_outputs ? words->k : words->n;
  // Whole words of inputs, so that no two threads read the same ones.
  const int64_t piece = std::max<int64_t>(qk::kPiece * 4 / columns / 8, 1) * 8;
  const auto unpack = kernels(isa).unpack;
  in_pieces(rows, piece, parallel, threads, [&](int64_t from, int64_t to) { unpack(*words, out, static_cast<QkType>(type), from, to); });
  return QK_DONE;
}
