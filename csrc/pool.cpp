#include "pool.h"

#include <pthread.h>
#include <sched.h>
#include <unistd.h>

#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

namespace qk {
namespace {

constexpr int kSpins = 4000;       // about 100 microseconds: the time Python takes between two steps
constexpr int kBarrierSpins = 2000;  // then give the core away: the machine may have fewer than we think

class Pool {
 public:
  void run(int threads, void (*job)(void *, int), void *context) {
    std::lock_guard<std::mutex> turn(turn_);
    grow(threads - 1);
    job_ = job;
    context_ = context;
    threads_ = threads;
    running_.store(threads - 1, std::memory_order_relaxed);
    {
      std::lock_guard<std::mutex> lock(sleep_);
      epoch_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
    job(context, 0);
    for (int spins = 0; running_.load(std::memory_order_acquire) > 0;)
      if (++spins > kBarrierSpins) sched_yield(); else relax();
  }

 private:
  void grow(int workers) {
    while (static_cast<int>(workers_.size()) < workers) {
      const int thread = static_cast<int>(workers_.size()) + 1;
      const uint64_t seen = epoch_.load();
      workers_.emplace_back([this, thread, seen] { work(thread, seen); });
      workers_.back().detach();
    }
  }

  void work(int thread, uint64_t seen) {
    for (;;) {
      for (int spins = 0; spins < kSpins && epoch_.load(std::memory_order_acquire) == seen; ++spins) relax();
      if (epoch_.load(std::memory_order_acquire) == seen) {
        std::unique_lock<std::mutex> lock(sleep_);
        wake_.wait(lock, [&] { return epoch_.load(std::memory_order_relaxed) != seen; });
      }
      seen = epoch_.load(std::memory_order_acquire);
      if (thread < threads_) {
        job_(context_, thread);
        running_.fetch_sub(1, std::memory_order_release);
      }
    }
  }

  std::mutex turn_, sleep_;
  std::condition_variable wake_;
  std::atomic<uint64_t> epoch_{0};
  std::atomic<int> running_{0};
  std::vector<std::thread> workers_;
  void (*job_)(void *, int) = nullptr;
  void *context_ = nullptr;
  int threads_ = 0;
};

// A forked child has none of its parent's threads, so it starts a pool of its own.
Pool *pool = nullptr;
pid_t pool_owner = 0;
std::mutex pool_lock;

Pool *current_pool() {
  std::lock_guard<std::mutex> lock(pool_lock);
  if (pool == nullptr || pool_owner != getpid()) {
    pool = new Pool;
    pool_owner = getpid();
  }
  return pool;
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

void run_parallel(int threads, void (*job)(void *, int), void *context) {
  if (threads <= 1) {
    job(context, 0);
    return;
  }
  current_pool()->run(threads, job, context);
}

}  // namespace qk
