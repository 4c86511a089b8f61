// Runs the CPU kernels over random small models of awkward shapes, for the sanitizers (scripts/sanitize). All batches,
// cuts, threads and instruction sets must give the same bits. Arguments: seconds (0: all that is listed), "no-fork".
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>

#include "models.h"

namespace {

void fail(const char *what, const Shape &s, int type, int a, int b) {
  std::fprintf(stderr, "%s: hidden %d head_dim %d type %d (%d, %d)\n", what, s.hidden, s.head_dim, type, a, b);
  std::abort();
}

struct Case {
  const Shape &s;
  int type;
  bool int8;
  Model model;
  Adapters adapter;

  const bool rounds;  // activations of matrices in panels to 8 bits

  Case(const Shape &s, int type, bool int8, bool packed = false, bool rounds = false)
      : s(s), type(type), int8(int8), model(s, type, packed), adapter(s, model), rounds(rounds) {}

  // Reads whole sequences number first, first + step ..., `chunk` tokens of each a call, and returns all logits, sequence
  // by sequence. Odd ones have an adapter.
  std::vector<float> read(int first, int count, int step, int chunk, int threads, int isa) {
    std::vector<Sequence> sequences;
    int32_t next = 0;
    const int most = count * 3, pool_pages = most % 7 ? most : most + 1;  // not divisible by 7, so that pages differ
    for (int i = 0; i < count; ++i) sequences.emplace_back(first + i * step, next, pool_pages);
    Memory memory(s, type, pool_pages, int8);
    std::vector<std::vector<float>> logits(count);
    while (run(sequences, memory, chunk, threads, isa, logits)) {}
    std::vector<float> out;
    for (const auto &part : logits) out.insert(out.end(), part.begin(), part.end());
    return out;
  }

  bool run(std::vector<Sequence> &sequences, Memory &memory, int chunk, int threads, int isa, std::vector<std::vector<float>> &logits) {
    std::vector<QkSpan> spans;
    std::vector<int64_t> tokens, rows;
    std::vector<int> owners;
    std::vector<std::unique_ptr<float[]>> angles;
    for (Sequence &q : sequences) {
      // Cuts at other places in every sequence.
      const int64_t count = std::min<int64_t>(q.total - q.length, chunk + (chunk > 1 ? q.number % 3 : 0));
      if (!count) continue;
      for (int part = 0; part < 3; ++part) angles.emplace_back(new float[part < 2 ? count * s.rotary : count]);
      float *cos = angles[angles.size() - 3].get(), *sin = angles[angles.size() - 2].get(), *scale = angles.back().get();
      for (int64_t i = 0; i < count; ++i) {
        const int64_t t = q.length + i;
        for (int j = 0; j < s.rotary; ++j) cos[i * s.rotary + j] = std::cos(t + j), sin[i * s.rotary + j] = std::sin(t + j);
        scale[i] = 1 + t % 3;
        tokens.push_back((q.number + 5 * t) % s.vocab), rows.push_back(rows.size());
        owners.push_back(&q - sequences.data());
      }
      spans.push_back({q.pages.data(), q.length, count, cos, sin, q.number % 3 ? scale : nullptr, q.number % 2 ? &adapter.c : nullptr});
      q.length += count;
    }
    if (spans.empty()) return false;
    std::unique_ptr<float[]> out(new float[rows.size() * s.vocab]);
    const int status = qk_forward(&model.c, &memory.c, spans.size(), spans.data(), tokens.data(), rows.size(), rows.data(),
                                  out.get(), 0, rounds, threads, isa);
    if (status != QK_DONE) fail("refused", s, type, threads, isa);
    for (size_t i = 0; i < rows.size() * s.vocab; ++i)
      if (!std::isfinite(out[i])) fail("not finite", s, type, chunk, threads);
    for (size_t i = 0; i < rows.size(); ++i)
      logits[owners[i]].insert(logits[owners[i]].end(), out.get() + i * s.vocab, out.get() + (i + 1) * s.vocab);
    return true;
  }
};

// AMX adds in an order of its own, where it is used at all.
bool adds_alike(const Case &c, int isa) { return isa != QK_AMX || c.type != QK_BF16 || c.s.head_dim % 32 || c.rounds; }

void check_shape(const Shape &s, int type, bool int8, bool packed, bool rounds, int first, int most) {
  Case run(s, type, int8, packed, rounds);
  const struct { int chunk, threads; } ways[] = {{100, 3}, {6, 1}, {1, 3}};
  std::vector<float> expected;
  for (int isa = qk_best_isa(), before = -1; isa >= 0; before = isa--) {
    if (before < 0 || adds_alike(run, before) != adds_alike(run, isa)) {  // every sequence alone, token by token
      expected.clear();
      for (int i = 0; i < most; ++i) {
        const std::vector<float> one = run.read(first + i, 1, 1, 1, 1, isa);
        expected.insert(expected.end(), one.begin(), one.end());
      }
    }
    for (const auto &way : ways) {
      if (isa == QK_PORTABLE && way.chunk < 100) continue;  // slow
      if (run.read(first, most, 1, way.chunk, way.threads, isa) != expected) fail("bits differ", s, type, way.chunk, 10 * isa + way.threads);
    }
  }
}

// One matrix in panels: a row has the same bits beside any others, on any number of threads and with any instructions.
void check_product(unsigned seed) {
  const Shape s = random_shape(seed);
  Model model(s, QK_F32, true);
  const int64_t n = (1 + seed % 11) * 32;
  QkMatrix m{seed % 2 ? QK_PANEL4 : QK_PANEL8, static_cast<int32_t>(1 + seed % 5) * 16};
  model.pack(m, n);
  m.order = nullptr;  // is for layers
  const int count = 1 + seed * 7 % 40;
  const float *x = static_cast<const float *>(model.array(count * n));
  const auto run = [&](int first, int number, int threads, int isa) {
    std::vector<float> out(static_cast<size_t>(number) * m.rows, NAN);
    if (qk_int8_product(&m, n, x + first * n, number, out.data(), threads, isa) != QK_DONE) fail("refused", s, 0, threads, isa);
    return out;
  };
  std::vector<float> expected;
  for (int i = 0; i < count; ++i) {
    const std::vector<float> one = run(i, 1, 1, qk_best_isa());
    expected.insert(expected.end(), one.begin(), one.end());
  }
  for (int isa = 0; isa <= qk_best_isa(); ++isa)
    for (int threads = 1; threads <= 3; ++threads)
      if (run(0, count, threads, isa) != expected) fail("products differ", s, m.format, seed, 10 * isa + threads);
}

void check_nothing(const Shape &s, int type) {  // no spans, and no rows
  Case run(s, type, false);
  Memory memory(s, type, 1, false);
  for (int isa = 0; isa <= qk_best_isa(); ++isa) {
    float out[1];
    if (qk_forward(&run.model.c, &memory.c, 0, nullptr, nullptr, 0, nullptr, out, 0, 0, 3, isa) != QK_DONE) fail("refused", s, type, isa, 0);
    const int32_t page = 0;
    const int64_t token = 0;
    std::vector<float> cos(s.rotary, 1), sin(s.rotary, 0), states(s.hidden);
    const QkSpan span{&page, 0, 1, cos.data(), sin.data(), nullptr, nullptr};
    if (qk_forward(&run.model.c, &memory.c, 1, &span, &token, 0, nullptr, out, 0, 0, 2, isa) != QK_DONE) fail("refused", s, type, isa, 1);
    if (qk_forward(&run.model.c, &memory.c, 1, &span, &token, 1, &token, states.data(), 1, 0, 2, isa) != QK_DONE) fail("refused", s, type, isa, 2);
    for (const float x : states) if (!std::isfinite(x)) fail("states", s, type, isa, 0);
  }
}

// Callers of different thread counts at once: workers a job does not need must leave it alone.
void check_callers() {
  const Shape &s = kShapes[0];
  Case run(s, QK_F32, false);
  const std::vector<float> expected = run.read(0, 3, 1, 4, 1, QK_PORTABLE);
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 4; ++caller)
    callers.emplace_back([&, caller] {
      for (int i = 0; i < 4; ++i)
        if (run.read(0, 3, 1, 4, 1 + (caller * 5 + i * 7) % 5, qk_best_isa()) != expected) fail("callers differ", s, QK_F32, caller, i);
    });
  for (std::thread &caller : callers) caller.join();
}

void check_fork() {
  const Shape &s = kShapes[0];
  Case run(s, QK_F32, false);
  const std::vector<float> expected = run.read(0, 2, 1, 4, 4, QK_PORTABLE);
  const pid_t child = fork();
  if (child == 0) _exit(run.read(0, 2, 1, 4, 4, QK_PORTABLE) != expected);
  int status = -1;
  if (waitpid(child, &status, 0) != child || status != 0) fail("fork", s, QK_F32, status, 0);
}

struct Listed {
  int shape, type;
  bool int8, packed;
};

// Everything once, in an order that soon has something of each.
std::vector<Listed> listed() {
  std::vector<Listed> all;
  for (int shape = 0; shape < static_cast<int>(std::size(kShapes)); ++shape)
    for (const int type : {QK_F32, QK_BF16, QK_F16})
      for (const bool int8 : {false, true})
        for (const bool packed : {false, true}) all.push_back({shape, type, int8, packed});
  std::shuffle(all.begin(), all.end(), std::mt19937(1));
  return all;
}

}  // namespace

int main(int count, char **arguments) {
  const int seconds = count > 1 ? std::atoi(arguments[1]) : 0;
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(seconds);
  const auto late = [&] { return seconds && std::chrono::steady_clock::now() > end; };
  check_nothing(kShapes[1], QK_F16), check_nothing(kShapes[4], QK_BF16);
  check_callers();
  if (count <= 2) check_fork();  // the thread sanitizer cannot start threads in a child
  unsigned done = 0;
  for (const Listed &l : listed()) {
    if (done > 1 && late()) break;
    check_shape(kShapes[l.shape], l.type, l.int8, l.packed, ++done % 2, seconds ? done % 7 : 0, seconds ? 2 : 4);
    check_product(done);
    const Shape s = random_shape(done);
    if (!late()) check_shape(s, static_cast<int>(done % 3), done % 5 == 0, done % 4 != 0, done % 2 == 0, done % 7, 2);
  }
  std::printf("ok: %u listed and as many random cases\n", done);
}
