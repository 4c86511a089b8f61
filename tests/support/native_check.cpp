// Runs the CPU kernels over random small models of awkward shapes, for the sanitizers (scripts/check_native). Every
// array has exactly the size it must have, and what must not be read is NaN. All batches, cuts, threads and instruction
// sets must give the same bits.
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
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
    {1, 96, 4, 2, 32, 160, 77, 32, true, false, 0},   {1, 608, 3, 1, 32, 352, 45, 32, false, false, 0},
};
const int64_t kLengths[] = {0, 40, 1, 17, 15, 16, 7, 64};

struct Model {
  QkModel c{};
  std::vector<std::unique_ptr<char[]>> kept;
  std::vector<QkLayer> layers;
  std::vector<std::unique_ptr<QkMatrix[]>> parts;
  std::mt19937 random;
  const bool packed;  // matrices of random formats, where widths allow

  Model(const Shape &s, int type, bool packed) : random(7), packed(packed) {
    const int64_t d = s.hidden, q = int64_t{s.heads} * s.head_dim, kv = int64_t{s.kv_heads} * s.head_dim;
    layers.resize(s.layers);
    c = {type, s.layers, s.hidden, s.heads, s.kv_heads, s.head_dim, s.ffn, s.vocab, s.rotary, 1e-6f};
    c.layer = layers.data();
    for (QkLayer &l : layers) {
      l.attn_norm = array(d), l.ffn_norm = array(d);
      l.qkv = linear({q, kv, kv}, d, s.biases), l.out = linear({d}, q, s.biases);
      l.gate_up = linear({s.ffn, s.ffn}, d, s.biases), l.down = linear({d}, s.ffn, s.biases);
      if (s.norms) l.q_norm = array(s.head_dim), l.k_norm = array(s.head_dim);
      l.window = &l == &layers[0] ? s.window : 0;
    }
    c.embed = matrix(s.vocab, d), c.norm = array(d), c.head = matrix(s.vocab, d);
    c.embed.order = nullptr;
  }

  QkLinear linear(std::vector<int64_t> sizes, int64_t n, bool has_bias) {
    if (!packed) sizes = {std::accumulate(sizes.begin(), sizes.end(), int64_t{0})};
    parts.emplace_back(new QkMatrix[sizes.size()]);
    for (size_t i = 0; i < sizes.size(); ++i) parts.back()[i] = matrix(sizes[i], n);
    const int64_t rows = std::accumulate(sizes.begin(), sizes.end(), int64_t{0});
    return {static_cast<int32_t>(sizes.size()), parts.back().get(), has_bias ? array(rows) : nullptr};
  }

  QkMatrix matrix(int64_t rows, int64_t n) {
    QkMatrix m{QK_DENSE, static_cast<int32_t>(rows)};
    if (packed) m.format = random() % (n % 32 ? 3 : 5);
    if (m.format == QK_DENSE) return m.data = array(rows * n), m;
    if (m.format == QK_HALF || m.format == QK_BRAIN) return m.data = halves(rows * n, m.format == QK_BRAIN), m;
    const int64_t sizes[] = {16, 32, 48, 128, n};
    m.group = sizes[random() % 5];
    const int64_t groups = (n + m.group - 1) / m.group;
    m.data = bytes(m.format == QK_INT4 ? rows * n / 2 : rows * n);
    m.scales = scales(rows * groups, m.format == QK_INT4 ? 0x2400 : 0x1400);
    if (random() % 3 == 0) m.zeros = bytes(rows * groups);
    else if (random() % 2) m.mins = scales(rows * groups, 0x2800);
    if (random() % 3 == 0) m.order = shuffled(n);
    return m;
  }

  uint8_t *bytes(int64_t size) {
    kept.emplace_back(new char[size]);
    for (int64_t i = 0; i < size; ++i) kept.back()[i] = static_cast<char>(random());
    return reinterpret_cast<uint8_t *>(kept.back().get());
  }

  uint16_t *scales(int64_t size, int below) {  // float16 numbers
    uint16_t *out = reinterpret_cast<uint16_t *>(bytes(size * 2));
    for (int64_t i = 0; i < size; ++i) out[i] = (out[i] & 0x8000) | random() % below;
    return out;
  }

  uint16_t *halves(int64_t size, bool brain) {
    uint16_t *out = reinterpret_cast<uint16_t *>(bytes(size * 2));
    for (int64_t i = 0; i < size; ++i) out[i] = (out[i] & 0x8000) | (brain ? 0x3c00 + random() % 0x280 : random() % 0x3400);
    return out;
  }

  int32_t *shuffled(int64_t n) {
    int32_t *out = reinterpret_cast<int32_t *>(bytes(n * 4));
    std::iota(out, out + n, 0);
    std::shuffle(out, out + n, random);
    return out;
  }

  size_t width() const { return c.type == QK_F32 ? 4 : 2; }

  // `size` random numbers of the model's type.
  void *array(int64_t size) {
    kept.emplace_back(new char[size * width()]);
    for (int64_t i = 0; i < size; ++i) {
      const float f = std::normal_distribution<float>(0, 0.2f)(random);
      uint32_t bits;
      std::memcpy(&bits, &f, 4);
      const uint16_t half = c.type == QK_BF16 ? bits >> 16 : (bits >> 16 & 0x8000) | (random() % 0x3400);
      std::memcpy(kept.back().get() + i * width(), c.type == QK_F32 ? static_cast<const void *>(&f) : &half, width());
    }
    return kept.back().get();
  }
};

// Pages of all sequences, exactly as large as they must be; what no sequence has written is NaN.
struct Memory {
  QkPool c{};
  std::vector<std::unique_ptr<char[]>> kept;
  std::vector<size_t> sizes;

  Memory(const Shape &s, int type, int pages, bool int8) {
    const int64_t blocks = int64_t{pages} * s.layers * s.kv_heads, d = s.head_dim;
    const int64_t width = int8 ? 1 : type == QK_F32 ? 4 : 2, even = type == QK_BF16 && !int8 ? (d + 1) / 2 * 2 : d;
    c.int8 = int8;
    c.keys = array(blocks * QK_PAGE * even * width), c.values = array(blocks * QK_PAGE * d * width);
    if (!int8) return;
    c.key_scale = reinterpret_cast<uint16_t *>(array(2 * blocks * QK_PAGE));
    c.value_scale = reinterpret_cast<uint16_t *>(array(2 * blocks * QK_PAGE));
    c.key_zero = reinterpret_cast<uint8_t *>(array(blocks * QK_PAGE));
    c.value_zero = reinterpret_cast<uint8_t *>(array(blocks * QK_PAGE));
  }

  char *array(size_t size) {
    kept.emplace_back(new char[size]), sizes.push_back(size);
    std::memset(kept.back().get(), 0xff, size);
    return kept.back().get();
  }
};

// The same numbers for the same number of it.
struct Sequence {
  std::vector<int32_t> pages;
  int64_t length = 0, total;
  int number;

  Sequence(int number, int32_t &next, int most) : total(kLengths[number % 8] + 1), number(number) {
    for (int64_t t = 0; t < total; t += QK_PAGE) pages.push_back((next++ * 7) % most);
  }
};

struct Adapters {
  std::vector<QkLora> lora;
  QkAdapter c{};

  Adapters(const Shape &s, Model &model) {
    const int64_t d = s.hidden, q = int64_t{s.heads} * s.head_dim, kv = int64_t{s.kv_heads} * s.head_dim;
    const int64_t sizes[4][2] = {{d, q + 2 * kv}, {q, d}, {d, 2 * s.ffn}, {s.ffn, d}};
    for (int i = 0; i < 4 * s.layers; ++i) {
      const int rank = i % 5 == 3 ? 0 : 1 + i % 19;
      lora.push_back({rank, rank ? model.array(rank * sizes[i % 4][0]) : nullptr, rank ? model.array(rank * sizes[i % 4][1]) : nullptr});
    }
    c = {lora.data(), model.array(d * s.vocab), model.array(d * s.vocab)};
  }
};

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

  Case(const Shape &s, int type, bool int8, bool packed = false)
      : s(s), type(type), int8(int8), model(s, type, packed), adapter(s, model) {}

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
                                  out.get(), 0, threads, isa);
    if (status != QK_DONE) fail("refused", s, type, threads, isa);
    for (size_t i = 0; i < rows.size() * s.vocab; ++i)
      if (!std::isfinite(out[i])) fail("not finite", s, type, chunk, threads);
    for (size_t i = 0; i < rows.size(); ++i)
      logits[owners[i]].insert(logits[owners[i]].end(), out.get() + i * s.vocab, out.get() + (i + 1) * s.vocab);
    return true;
  }
};

// AMX adds in an order of its own, where it is used at all.
bool adds_alike(const Shape &s, int type, int isa) { return isa != QK_AMX || type != QK_BF16 || s.head_dim % 32; }

void check_shape(const Shape &s, int type, bool int8, bool packed, int most) {
  Case run(s, type, int8, packed);
  const struct { int chunk, threads; } ways[] = {{100, 3}, {6, 1}, {1, 3}};
  std::vector<float> expected;
  for (int isa = qk_best_isa(), before = -1; isa >= 0; before = isa--) {
    if (before < 0 || adds_alike(s, type, before) != adds_alike(s, type, isa)) {  // every sequence alone, token by token
      expected.clear();
      for (int i = 0; i < most; ++i) {
        const std::vector<float> one = run.read(i, 1, 1, 1, 1, isa);
        expected.insert(expected.end(), one.begin(), one.end());
      }
    }
    for (const auto &way : ways) {
      if (isa == QK_PORTABLE && way.chunk == 1) continue;  // slow
      if (run.read(0, most, 1, way.chunk, way.threads, isa) != expected) fail("bits differ", s, type, way.chunk, 10 * isa + way.threads);
    }
  }
}

void check_nothing(const Shape &s, int type) {  // no spans, and no rows
  Case run(s, type, false);
  Memory memory(s, type, 1, false);
  for (int isa = 0; isa <= qk_best_isa(); ++isa) {
    float out[1];
    if (qk_forward(&run.model.c, &memory.c, 0, nullptr, nullptr, 0, nullptr, out, 0, 3, isa) != QK_DONE) fail("refused", s, type, isa, 0);
    const int32_t page = 0;
    const int64_t token = 0;
    std::vector<float> cos(s.rotary, 1), sin(s.rotary, 0), states(s.hidden);
    const QkSpan span{&page, 0, 1, cos.data(), sin.data(), nullptr, nullptr};
    if (qk_forward(&run.model.c, &memory.c, 1, &span, &token, 0, nullptr, out, 0, 2, isa) != QK_DONE) fail("refused", s, type, isa, 1);
    if (qk_forward(&run.model.c, &memory.c, 1, &span, &token, 1, &token, states.data(), 1, 2, isa) != QK_DONE) fail("refused", s, type, isa, 2);
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
      for (int i = 0; i < 10; ++i)
        if (run.read(0, 3, 1, 4, 1 + (caller * 5 + i * 7) % 5, qk_best_isa()) != expected) fail("callers differ", s, QK_F32, caller, i);
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
  Case run(s, QK_F32, false);
  const std::vector<float> expected = run.read(0, 2, 1, 4, 4, QK_PORTABLE);
  const pid_t child = fork();
  if (child == 0) _exit(run.read(0, 2, 1, 4, 4, QK_PORTABLE) != expected);
  int status = -1;
  if (waitpid(child, &status, 0) != child || status != 0) fail("fork", s, QK_F32, status, 0);
}

}  // namespace

int main(int count, char **arguments) {
  const int most = count > 1 ? std::atoi(arguments[1]) : 8;
  for (const Shape &s : kShapes)
    for (const int type : {QK_F32, QK_BF16, QK_F16})
      for (const bool int8 : {false, true}) {
        check_shape(s, type, int8, false, most);
        if (int8 == (type != QK_F32)) check_shape(s, type, int8, true, most);
      }
  check_nothing(kShapes[1], QK_F16), check_nothing(kShapes[4], QK_BF16);
  check_pool();
  check_callers();
  if (count <= 2) check_fork();  // a second argument leaves it out: the thread sanitizer cannot start threads in a child
  std::puts("ok");
}
