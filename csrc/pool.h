// A pool of threads that spin briefly while they wait and then sleep, and the barrier they meet at within a job.
#pragma once
#include <atomic>
#include <cstdint>

namespace qk {

// Tells the processor that this thread is waiting for another.
inline void relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// A number that threads wait for a change of.
class Signal {
 public:
  uint32_t value() const { return value_.load(std::memory_order_acquire); }
  void set(uint32_t value);

  // Returns once the number is not `old`; awake for `spin` nanoseconds, then asleep.
  void wait_while(uint32_t old, int64_t spin);

 private:
  std::atomic<uint32_t> value_{0}, sleepers_{0};
};

class Barrier {
 public:
  explicit Barrier(int threads) : threads_(threads) {}
  void wait();

 private:
  const int threads_;
  std::atomic<int> arrived_{0};
  Signal round_;
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
