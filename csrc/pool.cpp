#include "pool.h"

#include <pthread.h>
#include <sched.h>
#include <time.h>
#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <algorithm>
#include <climits>
#include <mutex>
#include <system_error>
#include <thread>

namespace qk {
namespace {

// How long to wait awake, in nanoseconds. Between jobs: as long as Python takes from one step to the next. Within a job
// the others are soon done, unless another program has the core of one of them: then it needs ours, which it gets only
// once we sleep.
constexpr int64_t kSpinForJobs = 150'000, kSpinWithin = 20'000;
constexpr int kGlances = 32;  // looks between readings of the clock

int64_t now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * int64_t{1'000'000'000} + t.tv_nsec;
}

void sleep_while(std::atomic<uint32_t> &word, uint32_t old) {
#if defined(__linux__)
  syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, old, nullptr, nullptr, 0);
#else
  if (word.load() == old) sched_yield();
#endif
}

void wake_all([[maybe_unused]] std::atomic<uint32_t> &word) {
#if defined(__linux__)
  syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
#endif
}

struct Job {
  void (*call)(void *, int);
  void *context;
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
    const uint32_t done = finished_.value();
    running_.store(threads - 1, std::memory_order_relaxed);
    for (int thread = 1; thread < threads; ++thread) {
      slots_[thread].job = {call, context};
      slots_[thread].posted.set(slots_[thread].posted.value() + 1);
    }
    call(context, 0);
    finished_.wait_while(done, kSpinWithin);
  }

 private:
  // Where one worker finds its next job. Each has its own, so that a worker a job does not need never looks at it: it
  // might wake when the next one is being set up.
  struct alignas(64) Slot {
    Signal posted;  // how many jobs there have been
    Job job{};
  };

  void work(int thread) {
    Slot &slot = slots_[thread];
    for (uint32_t seen = 0;; ++seen) {
      slot.posted.wait_while(seen, kSpinForJobs);
      slot.job.call(slot.job.context, thread);
      // From here on the caller may be gone, and what the job was about with it.
      if (running_.fetch_sub(1, std::memory_order_acq_rel) == 1) finished_.set(finished_.value() + 1);
    }
  }

  std::mutex turn_;
  int started_ = 1;                          // threads there are, a caller included
  alignas(64) std::atomic<int> running_{0};  // workers that are not done
  Signal finished_;                          // how many jobs all workers are done with
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

void Signal::set(uint32_t value) {
  // Both sequentially consistent: either we see the sleeper, or it sees the value before it sleeps.
  value_.store(value);
  if (sleepers_.load() > 0) wake_all(value_);
}

void Signal::wait_while(uint32_t old, int64_t spin) {
  for (int64_t end = 0, time = 0; time <= end; end = end ? end : time + spin) {
    for (int glance = 0; glance < kGlances; ++glance, relax())
      if (value() != old) return;
    time = now();
  }
  sleepers_.fetch_add(1);
  while (value_.load() == old) sleep_while(value_, old);
  sleepers_.fetch_sub(1);
}

void Barrier::wait() {
  const uint32_t round = round_.value();
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 < threads_) return round_.wait_while(round, kSpinWithin);
  arrived_.store(0, std::memory_order_relaxed);
  round_.set(round + 1);
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
