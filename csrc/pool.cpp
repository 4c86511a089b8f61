#include "pool.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>

namespace qk {
namespace {

constexpr int kSpins = 4000;       // about 100 microseconds: the time Python takes between two steps
constexpr int kBarrierSpins = 2000;  // then give the core away: the machine may have fewer than we think

struct Job {
  void (*call)(void *, int);
  void *context;
  std::atomic<int> running;  // workers that are not done; the last thing a worker touches
};

class Pool {
 public:
  int ready(int threads) {
    std::lock_guard<std::mutex> turn(turn_);
    try {
      for (; started_ < threads; ++started_) std::thread([this, thread = started_] { work(thread); }).detach();
    } catch (const std::system_error &) {  // a limit on threads: go on with those there are
    }
    return std::min(threads, started_);
  }

  void run(int threads, void (*call)(void *, int), void *context) {
    std::lock_guard<std::mutex> turn(turn_);
    Job job{call, context, {threads - 1}};
    {
      std::lock_guard<std::mutex> lock(sleep_);
      for (int thread = 1; thread < threads; ++thread) slots_[thread].job.store(&job, std::memory_order_release);
    }
    wake_.notify_all();
    call(context, 0);
    for (int spins = 0; job.running.load(std::memory_order_acquire) > 0;)
      if (++spins > kBarrierSpins) sched_yield(); else relax();
  }

 private:
  // Where one worker finds its next job. Each has its own, so that a worker a job does not need never looks at it: it
  // might wake when the next one is being set up.
  struct alignas(64) Slot {
    std::atomic<Job *> job{nullptr};
  };

  void work(int thread) {
    std::atomic<Job *> &slot = slots_[thread].job;
    for (;;) {
      Job *job = nullptr;
      for (int spins = 0; spins < kSpins && !(job = slot.load(std::memory_order_acquire)); ++spins) relax();
      if (!job) {
        std::unique_lock<std::mutex> lock(sleep_);
        wake_.wait(lock, [&] { return (job = slot.load(std::memory_order_acquire)) != nullptr; });
      }
      slot.store(nullptr, std::memory_order_relaxed);
      job->call(job->context, thread);
      job->running.fetch_sub(1, std::memory_order_release);
    }
  }

  std::mutex turn_, sleep_;
  std::condition_variable wake_;
  int started_ = 1;  // threads there are, a caller included
  Slot slots_[kMaxThreads];
};

// Never destroyed: its workers may outlive main(). A forked child has none of its parent's threads, so it starts a pool
// of its own; the parent's may be locked in it for ever.
std::atomic<Pool *> pool{nullptr};
[[maybe_unused]] const int at_fork = pthread_atfork(nullptr, nullptr, [] { pool.store(nullptr); });

Pool &current_pool() {
  Pool *current = pool.load(std::memory_order_acquire);
  if (current) return *current;
  Pool *fresh = new Pool;
  if (pool.compare_exchange_strong(current, fresh, std::memory_order_acq_rel)) return *fresh;
  delete fresh;
  return *current;
}

}  // namespace

void Barrier::wait() {
  const uint32_t round = round_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads_) {
    arrived_.store(0, std::memory_order_relaxed);
    round_.store(round + 1, std::memory_order_release);
    return;
  }
  for (int spins = 0; round_.load(std::memory_order_acquire) == round;)
    if (++spins > kBarrierSpins) sched_yield(); else relax();
}

int ready_threads(int threads) {
  return threads <= 1 ? 1 : current_pool().ready(std::min(threads, kMaxThreads));
}

void run_parallel(int threads, void (*job)(void *, int), void *context) {
  if (threads <= 1) {
    job(context, 0);
    return;
  }
  current_pool().run(threads, job, context);
}

}  // namespace qk
