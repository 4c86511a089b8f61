// Sixteen floats as plain C++. The other vector_*.h give the same results bit for bit: same lanes, same order, fused
// multiply-add, same tree of sums.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

namespace qk {
namespace {

// How many accumulators fit: rows of weights by activation rows, and any for attention.
constexpr int kTileRows = 2, kTileTokens = 2, kAccumulators = 4;

struct Vec {
  float lane[16];
};

inline float bits_to_float(uint32_t bits) {
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}

inline float half_to_float(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000) << 16, exponent = (h >> 10) & 31, fraction = h & 1023;
  if (exponent == 31) return bits_to_float(sign | 0x7f800000 | fraction << 13);
  if (exponent) return bits_to_float(sign | (exponent + 112) << 23 | fraction << 13);
  const float small = static_cast<float>(fraction) * 0x1p-24f;
  return sign ? -small : small;
}

template <class F>
inline Vec each(F f) {
  Vec out;
  for (int i = 0; i < 16; ++i) out.lane[i] = f(i);
  return out;
}

inline Vec set1(float x) { return each([=](int) { return x; }); }
inline Vec load(const float *p) { return each([=](int i) { return p[i]; }); }
inline void store(float *p, Vec a) { std::memcpy(p, a.lane, sizeof a.lane); }
inline Vec load_bf16(const uint16_t *p) {
  return each([=](int i) { return bits_to_float(static_cast<uint32_t>(p[i]) << 16); });
}
inline Vec load_f16(const uint16_t *p) { return each([=](int i) { return half_to_float(p[i]); }); }
// Two numbers of each lane that lie together.
inline void load_pairs(const uint16_t *p, Vec &even, Vec &odd) {
  even = each([=](int i) { return bits_to_float(static_cast<uint32_t>(p[2 * i]) << 16); });
  odd = each([=](int i) { return bits_to_float(static_cast<uint32_t>(p[2 * i + 1]) << 16); });
}
inline Vec load_u8(const uint8_t *p) { return each([=](int i) { return static_cast<float>(p[i]); }); }
// What the sixteen 4-bit codes stand for: scale * code + offset.
struct Grid {
  float scale, offset;
};
inline Grid grid(float scale, float offset) { return {scale, offset}; }
// Of sixteen bytes.
inline void load_nibbles(const uint8_t *p, const Grid &g, Vec &low, Vec &high) {
  low = each([&](int i) { return std::fma(static_cast<float>(p[i] & 15), g.scale, g.offset); });
  high = each([&](int i) { return std::fma(static_cast<float>(p[i] >> 4), g.scale, g.offset); });
}
inline Vec add(Vec a, Vec b) { return each([&](int i) { return a.lane[i] + b.lane[i]; }); }
inline Vec sub(Vec a, Vec b) { return each([&](int i) { return a.lane[i] - b.lane[i]; }); }
inline Vec mul(Vec a, Vec b) { return each([&](int i) { return a.lane[i] * b.lane[i]; }); }
inline Vec div(Vec a, Vec b) { return each([&](int i) { return a.lane[i] / b.lane[i]; }); }
inline Vec fma(Vec a, Vec b, Vec c) { return each([&](int i) { return std::fma(a.lane[i], b.lane[i], c.lane[i]); }); }
// Where one is NaN, the second of the two.
inline Vec max(Vec a, Vec b) { return each([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; }); }
inline Vec min(Vec a, Vec b) { return each([&](int i) { return a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]; }); }
inline Vec round_even(Vec a) { return each([&](int i) { return std::nearbyint(a.lane[i]); }); }
inline Vec scale_by_power(Vec a, Vec n) {
  return each([&](int i) {
    const int power = n.lane[i] == n.lane[i] ? static_cast<int>(n.lane[i]) : 0;  // a NaN is in `a` as well
    return a.lane[i] * bits_to_float(static_cast<uint32_t>(power + 127) << 23);
  });
}
inline float sum(Vec a) {
  for (int half = 8; half; half /= 2)
    for (int i = 0; i < half; ++i) a.lane[i] += a.lane[i + half];
  return a.lane[0];
}
inline void sum8(const Vec *a, float *out) {
  for (int i = 0; i < 8; ++i) out[i] = sum(a[i]);
}
inline float maximum(Vec a) {
  for (int half = 8; half; half /= 2)
    for (int i = 0; i < half; ++i) a.lane[i] = a.lane[i] > a.lane[i + half] ? a.lane[i] : a.lane[i + half];
  return a.lane[0];
}

}  // namespace
}  // namespace qk
