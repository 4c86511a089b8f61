// Random small models, caches and adapters for check.cpp. Every array has exactly the size it must have, and what must not
// be read is NaN.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "native.h"

struct Shape {
  int layers, hidden, heads, kv_heads, head_dim, ffn, vocab, rotary;
  bool biases, norms;
  int64_t window;
};

inline const Shape kShapes[] = {
    {2, 48, 4, 4, 16, 80, 97, 16, false, false, 0},   {2, 37, 6, 1, 2, 53, 13, 2, true, true, 3},
    {1, 5, 2, 1, 4, 3, 1, 2, true, false, 1},         {2, 33, 3, 3, 10, 17, 29, 6, false, true, 0},
    {1, 64, 4, 2, 64, 128, 50, 64, true, true, 9},    {1, 40, 2, 1, 128, 24, 31, 128, false, false, 0},
    {1, 19, 2, 2, 144, 31, 7, 100, true, true, 40},   {1, 130, 4, 2, 24, 400, 201, 24, false, true, 0},
    {1, 96, 4, 2, 32, 160, 77, 32, true, false, 0},   {1, 608, 3, 1, 32, 352, 45, 32, false, false, 0},
    {2, 37, 3, 3, 11, 53, 13, 10, true, true, 0},     {1, 64, 4, 4, 32, 96, 128, 32, true, false, 0},
};
inline const int64_t kLengths[] = {0, 40, 63, 17, 31, 16, 7, 64, 1, 15};  // of sequences, less one token

inline Shape random_shape(unsigned seed) {
  std::mt19937 random(seed);
  const auto pick = [&](std::initializer_list<int> of) { return of.begin()[random() % of.size()]; };
  const auto width = [&](int most) { return static_cast<int>(random() % 3 ? random() % (most / 32) + 1 : 0) * 32; };
  const auto odd = [&](int n, int most) { return n ? n : static_cast<int>(1 + random() % most); };
  Shape s{};
  s.layers = pick({1, 1, 2}), s.hidden = odd(width(320), 150), s.ffn = odd(width(480), 200);
  s.kv_heads = pick({1, 1, 2, 3}), s.heads = s.kv_heads * pick({1, 2, 3, 5, 8});
  s.head_dim = pick({2, 3, 8, 11, 16, 24, 32, 32, 64, 64, 80, 96, 128, 144});
  s.rotary = random() % 2 ? s.head_dim / 2 * 2 : 2, s.vocab = random() % 2 ? pick({16, 48, 128}) : pick({1, 13, 97, 201});
  s.biases = random() % 2, s.norms = random() % 2, s.window = random() % 3 ? 0 : 1 + random() % 50;
  return s;
}

struct Model {
  QkModel c{};
  std::vector<std::unique_ptr<char[]>> kept;
  std::vector<QkLayer> layers;
  std::vector<std::unique_ptr<QkMatrix[]>> parts;
  std::mt19937 random;
  const bool packed;  // matrices of random formats, where widths allow

  Model(const Shape &s, int type, bool packed) : random(s.hidden * 31 + s.ffn + type), packed(packed) {
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
    if (packed) m.format = random() % (n % 32 ? 3 : rows % 16 ? 5 : 7);
    if (m.format == QK_DENSE) return m.data = array(rows * n), m;
    if (m.format == QK_HALF || m.format == QK_BRAIN) return m.data = halves(rows * n, m.format == QK_BRAIN), m;
    return pack(m, n), m;
  }

  // Gives a matrix of integer codes its codes and what belongs to them.
  void pack(QkMatrix &m, int64_t n) {
    const bool panels = m.format == QK_PANEL4 || m.format == QK_PANEL8, small = m.format == QK_INT4 || m.format == QK_PANEL4;
    const int64_t sizes[] = {panels ? 64 : 16, 32, panels ? 96 : 48, 128, n};
    m.group = sizes[random() % 5];
    const int64_t rows = m.rows, groups = (n + m.group - 1) / m.group;
    m.data = bytes(small ? rows * n / 2 : rows * n);
    m.scales = scales(rows * groups, small ? 0x2400 : 0x1400);
    if (random() % 3 == 0) {
      uint8_t *zeros = bytes(rows * groups);
      if (small) std::for_each(zeros, zeros + rows * groups, [](uint8_t &zero) { zero %= 17; });
      m.zeros = zeros;
    } else if (random() % 2) {
      m.mins = scales(rows * groups, 0x2800);
    }
    if (random() % 3 == 0) m.order = shuffled(n);
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

  Sequence(int number, int32_t &next, int most) : total(kLengths[number % 10] + 1), number(number) {
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
