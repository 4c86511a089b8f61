// Many short jobs of changing size on the pool, for the thread sanitizer: late sleepers are what goes wrong. Within a job
// threads hand plain numbers to each other across the barrier.
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#include "pool.h"

namespace {

constexpr int kPhases = 20;

struct Work {
  const int threads;
  qk::Barrier barrier{threads};
  std::vector<int> runs = std::vector<int>(threads), seen = std::vector<int>(threads);

  void run(int thread) {
    for (int phase = 0; phase < kPhases; ++phase) {
      ++runs[thread];
      if (thread == phase % threads && phase % 7 == 3) usleep(phase * 20);  // the others fall asleep
      barrier.wait();
      for (const int number : runs) seen[thread] += number == phase + 1;
      barrier.wait();
    }
  }
};

void check(int jobs, int seed) {
  for (int i = 0; i < jobs; ++i) {
    Work work{qk::ready_threads(2 + (i + seed) * 7 % 6)};
    qk::run_parallel(work.threads, [](void *w, int thread) { static_cast<Work *>(w)->run(thread); }, &work);
    for (int t = 0; t < work.threads; ++t)
      if (work.runs[t] != kPhases || work.seen[t] != kPhases * work.threads) {
        std::fprintf(stderr, "job %d, thread %d of %d: %d phases, saw %d\n", i, t, work.threads, work.runs[t], work.seen[t]);
        std::abort();
      }
    if (i % 50 == 0) usleep(1000);  // the workers fall asleep
  }
}

}  // namespace

int main(int count, char **arguments) {
  const int jobs = count > 1 ? std::atoi(arguments[1]) : 1000;
  check(jobs, 0);
  std::vector<std::thread> callers;
  for (int seed = 1; seed <= 3; ++seed) callers.emplace_back(check, jobs / 3, seed);
  for (std::thread &caller : callers) caller.join();
  std::puts("ok: pool");
}
