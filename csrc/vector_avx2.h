// Sixteen floats in two AVX2 registers; see vector_portable.h for what each function does.
#pragma once
#include <immintrin.h>

#include <cstdint>

namespace qk {
namespace {

// How many accumulators fit: rows of weights by activation rows, and any for attention.
constexpr int kTileRows = 2, kTileTokens = 2, kAccumulators = 4;

struct Vec {
  __m256 lo, hi;
};

inline Vec set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline Vec load(const float *p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float *p, Vec a) {
  _mm256_storeu_ps(p, a.lo);
  _mm256_storeu_ps(p + 8, a.hi);
}
inline __m256 widen_bf16(const uint16_t *p) {
  const __m128i raw = _mm_loadu_si128(reinterpret_cast<const __m128i *>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(raw), 16));
}
inline __m256 widen_f16(const uint16_t *p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)));
}
inline Vec load_bf16(const uint16_t *p) { return {widen_bf16(p), widen_bf16(p + 8)}; }
inline Vec load_f16(const uint16_t *p) { return {widen_f16(p), widen_f16(p + 8)}; }
inline void load_pairs(const uint16_t *p, Vec &even, Vec &odd) {
  const __m256i lo = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(p));
  const __m256i hi = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(p + 16));
  const __m256i upper = _mm256_set1_epi32(static_cast<int>(0xffff0000));
  even = {_mm256_castsi256_ps(_mm256_slli_epi32(lo, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(hi, 16))};
  odd = {_mm256_castsi256_ps(_mm256_and_si256(lo, upper)), _mm256_castsi256_ps(_mm256_and_si256(hi, upper))};
}
inline __m256 widen_u8(const uint8_t *p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(p))));
}
inline Vec load_u8(const uint8_t *p) { return {widen_u8(p), widen_u8(p + 8)}; }
struct Grid {
  __m256 scale, offset;
};
inline Grid grid(float scale, float offset) { return {_mm256_set1_ps(scale), _mm256_set1_ps(offset)}; }
inline void load_nibbles(const uint8_t *p, const Grid &g, Vec &low, Vec &high) {
  const __m128i raw = _mm_loadu_si128(reinterpret_cast<const __m128i *>(p)), ones = _mm_set1_epi8(15);
  const auto number = [&](__m128i codes) {
    return _mm256_fmadd_ps(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(codes)), g.scale, g.offset);
  };
  const __m128i lows = _mm_and_si128(raw, ones), highs = _mm_and_si128(_mm_srli_epi16(raw, 4), ones);
  low = {number(lows), number(_mm_unpackhi_epi64(lows, lows))};
  high = {number(highs), number(_mm_unpackhi_epi64(highs, highs))};
}
inline Vec add(Vec a, Vec b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
inline Vec sub(Vec a, Vec b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
inline Vec mul(Vec a, Vec b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
inline Vec div(Vec a, Vec b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
inline Vec fma(Vec a, Vec b, Vec c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
inline Vec max(Vec a, Vec b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
inline Vec min(Vec a, Vec b) { return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }
inline Vec round_even(Vec a) {
  constexpr int mode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(a.lo, mode), _mm256_round_ps(a.hi, mode)};
}
inline __m256 power_of_two(__m256 n) {
  const __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
  return _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
}
inline Vec scale_by_power(Vec a, Vec n) {
  return {_mm256_mul_ps(a.lo, power_of_two(n.lo)), _mm256_mul_ps(a.hi, power_of_two(n.hi))};
}
inline float sum(Vec a) {
  const __m256 eight = _mm256_add_ps(a.lo, a.hi);
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  four = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(four, _mm_shuffle_ps(four, four, 1)));
}
// Eight times sum() in a third of the instructions: the same additions, side by side.
inline __m256 add_halves(__m256 a, __m256 b) {  // a's in the lower half, b's in the upper
  return _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
}
inline __m256 add_distant(__m256 a, __m256 b) {  // in each half: a0+a2, a1+a3, b0+b2, b1+b3
  return _mm256_add_ps(_mm256_shuffle_ps(a, b, 0x44), _mm256_shuffle_ps(a, b, 0xee));
}
inline __m256 add_neighbours(__m256 a, __m256 b) {  // in each half: a0+a1, a2+a3, b0+b1, b2+b3
  return _mm256_add_ps(_mm256_shuffle_ps(a, b, 0x88), _mm256_shuffle_ps(a, b, 0xdd));
}
inline void sum8(const Vec *a, float *out) {
  __m256 eight[8], four[4];
  for (int i = 0; i < 8; ++i) eight[i] = _mm256_add_ps(a[i].lo, a[i].hi);
  for (int i = 0; i < 4; ++i) four[i] = add_halves(eight[i], eight[i + 4]);
  _mm256_storeu_ps(out, add_neighbours(add_distant(four[0], four[1]), add_distant(four[2], four[3])));
}
inline float maximum(Vec a) {
  const __m256 eight = _mm256_max_ps(a.lo, a.hi);
  __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  four = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(four, _mm_shuffle_ps(four, four, 1)));
}

}  // namespace
}  // namespace qk
