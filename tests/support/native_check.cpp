// Runs the CPU kernels over random small models of awkward shapes, for the sanitizers (scripts/check_native). Every
// array has exactly the size it must have, and what must not be read is NaN. All batches, threads and instruction sets
// must give the same bits.
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "native.h"
#include "pool.h"

namespace {

struct Shape {
  int layers, hidden, heads, kv_heads, head_dim, ffn, vocab, rotary;
  bool biases, norms;
  int64_t window;
};

const Shape kShapes[] = {
    {2, 48, 4, 4, 16, 80, 97, 16, false, false, 0},   {2, 37, 6, 1, 2, 53, 13, 2, true, true, 3},
    {1, 5, 2, 1, 4, 3, 1, 2, true, false, 1},         {2, 33, 3, 3, 10, 17, 29, 6, false, true, 0},
    {1, 64, 4, 2, 64, 128, 50, 64, true, true, 9},    {1, 40, 2, 1, 128, 24, 31, 128, false, false, 0},
    {1, 19, 2, 2, 144, 31, 7, 100, true, true, 40},   {1, 130, 4, 2, 24, 400, 201, 24, false, true, 0},
};
const int64_t kLengths[] = {0, 1, 15, 16, 17, 40, 7, 64};

struct Model {
  QkModel c{};
  std::vector<std::unique_ptr<char[]>> kept;
  std::vector<QkLayer> layers;
  std::mt19937 random;

  Model(const Shape &s, int type) : random(7) {
    const int64_t d = s.hidden, q = int64_t{s.heads} * s.head_dim, kv = int64_t{s.kv_heads} * s.head_dim;
    layers.resize(s.layers);
    c = {type, s.layers, s.hidden, s.heads, s.kv_heads, s.head_dim, s.ffn, s.vocab, s.rotary, 1e-6f, nullptr, nullptr,
         nullptr, layers.data()};
    for (QkLayer &l : layers) {
      l.attn_norm = array(d), l.qkv_weight = array((q + 2 * kv) * d), l.out_weight = array(q * d);
      l.ffn_norm = array(d), l.gate_up_weight = array(2 * d * s.ffn), l.down_weight = array(d * s.ffn);
      if (s.biases) l.qkv_bias = array(q + 2 * kv), l.out_bias = array(d), l.gate_up_bias = array(2 * s.ffn), l.down_bias = array(d);
      if (s.norms) l.q_norm = array(s.head_dim), l.k_norm = array(s.head_dim);
      l.window = &l == &layers[0] ? s.window : 0;
    }
    c.embed = array(d * s.vocab), c.norm = array(d), c.head = array(d * s.vocab);
  }

  size_t width() const { return c.type == QK_F32 ? 4 : 2; }

  // `size` numbers of the model's type, random up to `used` in every `row`, NaN behind.
  void *array(int64_t size, int64_t row = 1, int64_t used = 1) {
    kept.emplace_back(new char[size * width()]);
    for (int64_t i = 0; i < size; ++i) {
      const bool real = i % row < used;
      const float f = std::normal_distribution<float>(0, 0.2f)(random);
      uint32_t bits;
      std::memcpy(&bits, &f, 4);
      const uint16_t half = real ? (c.type == QK_BF16 ? bits >> 16 : (bits >> 16 & 0x8000) | (random() % 0x3400)) : 0x7fff;
      const float full = real ? f : NAN;
      std::memcpy(kept.back().get() + i * width(), c.type == QK_F32 ? static_cast<const void *>(&full) : &half, width());
    }
    return kept.back().get();
  }
};

// A sequence of its own memory; the same numbers for the same number of it.
struct Past {
  Model memory;
  std::unique_ptr<float[]> cos, sin;
  QkSequence c{};

  Past(const Shape &s, int type, int number) : memory(Shape{}, type) {
    memory.random.seed(number);
    const int64_t length = kLengths[number % 8], capacity = length + 1 + number % 3;
    const int64_t rows = int64_t{s.layers} * s.kv_heads * capacity;
    c.keys = memory.array(rows * s.head_dim, capacity * s.head_dim, length * s.head_dim);
    c.values = memory.array(rows * s.head_dim, capacity * s.head_dim, length * s.head_dim);
    cos.reset(new float[s.rotary]), sin.reset(new float[s.rotary]);
    for (int i = 0; i < s.rotary; ++i) cos[i] = std::cos(number + i), sin[i] = std::sin(number + i);
    c.capacity = capacity, c.length = length, c.cos = cos.get(), c.sin = sin.get(), c.query_scale = 1 + number % 2;
  }
};

void fail(const char *what, const Shape &s, int type, int a, int b) {
  std::fprintf(stderr, "%s: hidden %d head_dim %d type %d (%d, %d)\n", what, s.hidden, s.head_dim, type, a, b);
  std::abort();
}

// Logits and caches of `batch` sequences, number `first` onwards.
std::vector<char> decode(const Shape &s, int type, Model &model, int first, int batch, int threads, int isa) {
  std::vector<std::unique_ptr<Past>> pasts;
  std::unique_ptr<QkSequence[]> sequences(new QkSequence[batch]);
  std::unique_ptr<int64_t[]> tokens(new int64_t[batch]);
  for (int b = 0; b < batch; ++b) {
    pasts.emplace_back(new Past(s, type, first + b));
    sequences[b] = pasts[b]->c, tokens[b] = (first + b) % s.vocab;
  }
  std::unique_ptr<float[]> logits(new float[int64_t{batch} * s.vocab]);
  if (qk_decode(&model.c, batch, tokens.get(), sequences.get(), logits.get(), threads, isa) != QK_DONE)
    fail("refused", s, type, threads, isa);
  for (int64_t i = 0; i < int64_t{batch} * s.vocab; ++i)
    if (!std::isfinite(logits[i])) fail("not finite", s, type, batch, threads);
  std::vector<char> out;
  for (int b = 0; b < batch; ++b) {
    const char *row = reinterpret_cast<const char *>(logits.get() + int64_t{b} * s.vocab);
    out.insert(out.end(), row, row + s.vocab * sizeof(float));
    for (const auto &kept : pasts[b]->memory.kept) {
      const int64_t size = int64_t{s.layers} * s.kv_heads * sequences[b].capacity * s.head_dim * model.width();
      if (&kept - pasts[b]->memory.kept.data() >= static_cast<long>(pasts[b]->memory.kept.size()) - 2)
        out.insert(out.end(), kept.get(), kept.get() + size);
    }
  }
  return out;
}

std::vector<char> one_by_one(const Shape &s, int type, Model &model, int batch, int isa) {
  std::vector<char> out;
  for (int b = 0; b < batch; ++b) {
    const std::vector<char> one = decode(s, type, model, b, 1, 1, isa);
    out.insert(out.end(), one.begin(), one.end());
  }
  return out;
}

void check_shape(const Shape &s, int type, int most) {
  Model model(s, type);
  const std::vector<char> expected = one_by_one(s, type, model, most, QK_PORTABLE);
  for (int isa = 0; isa <= qk_best_isa(); ++isa)
    for (const int batch : {0, 1, 3, std::min(15, most), most})
      for (const int threads : {1, 3}) {
        const std::vector<char> got = decode(s, type, model, 0, batch, threads, isa);
        if (!std::equal(got.begin(), got.end(), expected.begin())) fail("bits differ", s, type, batch, 10 * isa + threads);
      }
}

// Callers of different thread counts at once: workers a job does not need must leave it alone.
void check_callers() {
  const Shape &s = kShapes[0];
  Model model(s, QK_F32);
  const std::vector<char> expected = decode(s, QK_F32, model, 0, 3, 1, QK_PORTABLE);
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 4; ++caller)
    callers.emplace_back([&, caller] {
      for (int i = 0; i < 30; ++i)
        if (decode(s, QK_F32, model, 0, 3, 1 + (caller * 5 + i * 7) % 5, qk_best_isa()) != expected)
          fail("callers differ", s, QK_F32, caller, i);
    });
  for (std::thread &caller : callers) caller.join();
}

void check_pool() {  // many short jobs of changing size; late sleepers are what goes wrong
  struct Count {
    std::atomic<int> runs[16];
  };
  for (int i = 0; i < 5000; ++i) {
    const int threads = qk::ready_threads(2 + i * 7 % 6);
    Count count{};
    qk::run_parallel(threads, [](void *c, int thread) { ++static_cast<Count *>(c)->runs[thread]; }, &count);
    for (int t = 0; t < 16; ++t)
      if (count.runs[t] != (t < threads)) fail("runs", kShapes[0], i, t, threads);
    if (i % 1000 == 0) usleep(1000);
  }
}

void check_fork() {
  const Shape &s = kShapes[0];
  Model model(s, QK_F32);
  const std::vector<char> expected = decode(s, QK_F32, model, 0, 2, 4, QK_PORTABLE);
  const pid_t child = fork();
  if (child == 0) _exit(decode(s, QK_F32, model, 0, 2, 4, QK_PORTABLE) != expected);
  int status = -1;
  if (waitpid(child, &status, 0) != child || status != 0) fail("fork", s, QK_F32, status, 0);
}

}  // namespace

int main(int count, char **arguments) {
  const int most = count > 1 ? std::atoi(arguments[1]) : 20;
  for (const Shape &s : kShapes)
    for (const int type : {QK_F32, QK_BF16, QK_F16}) check_shape(s, type, most);
  check_pool();
  check_callers();
  if (count <= 2) check_fork();  // a second argument leaves it out: the thread sanitizer cannot start threads in a child
  std::puts("ok");
}
