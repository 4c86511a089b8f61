// A pool of threads that spin briefly between jobs and sleep otherwise, and the barrier they meet at within a job.
#pragma once
#include <atomic>
#include <cstdint>

namespace qk {

// Tells the processor that this thread is waiting for another.
inline void relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#endif
}

class Barrier {
 public:
  explicit Barrier(int threads) : threads_(threads) {}
  void wait();

 private:
  const int threads_;
  std::atomic<int> arrived_{0};
  std::atomic<uint32_t> round_{0};
};

constexpr int kMaxThreads = 256;

// Starts what is missing of `threads` threads, the caller among them. Returns how many a job can have: at least 1, and
// fewer than asked for where the system gives no more.
int ready_threads(int threads);

// Runs job(context, thread) on `threads` threads, the caller being thread 0; returns when all are done. No more than
// ready_threads() said; the job must not throw.
// Calls from several threads take turns.
void run_parallel(int threads, void (*job)(void *, int), void *context);

}  // namespace qk
