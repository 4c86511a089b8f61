// Sixteen floats in one AVX-512 register; see vector_portable.h for what each function does.
#pragma once
#include <immintrin.h>

#include <cstdint>

namespace qk {
namespace {

// How many accumulators fit: rows of weights by activation rows, and any for attention.
constexpr int kTileRows = 6, kTileTokens = 4, kAccumulators = 16;

struct Vec {
  __m512 r;
};

inline Vec set1(float x) { return {_mm512_set1_ps(x)}; }
inline Vec load(const float *p) { return {_mm512_loadu_ps(p)}; }
inline void store(float *p, Vec a) { _mm512_storeu_ps(p, a.r); }
inline __m256i load_words(const uint16_t *p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)); }
inline Vec load_bf16(const uint16_t *p) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(load_words(p)), 16))};
}
inline Vec load_f16(const uint16_t *p) { return {_mm512_cvtph_ps(load_words(p))}; }
inline void load_pairs(const uint16_t *p, Vec &even, Vec &odd) {
  const __m512i raw = _mm512_loadu_si512(p);
  even = {_mm512_castsi512_ps(_mm512_slli_epi32(raw, 16))};
  odd = {_mm512_castsi512_ps(_mm512_and_si512(raw, _mm512_set1_epi32(static_cast<int>(0xffff0000))))};
}
inline Vec load_u8(const uint8_t *p) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p))))};
}
struct Grid {
  __m512 numbers;
};
inline Grid grid(float scale, float offset) {
  const __m512 codes = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  return {_mm512_fmadd_ps(codes, _mm512_set1_ps(scale), _mm512_set1_ps(offset))};
}
inline void load_nibbles(const uint8_t *p, const Grid &g, Vec &low, Vec &high) {
  const __m512i codes = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)));
  low = {_mm512_permutexvar_ps(codes, g.numbers)};  // which looks at four bits alone
  high = {_mm512_permutexvar_ps(_mm512_srli_epi32(codes, 4), g.numbers)};
}
inline Vec add(Vec a, Vec b) { return {_mm512_add_ps(a.r, b.r)}; }
inline Vec sub(Vec a, Vec b) { return {_mm512_sub_ps(a.r, b.r)}; }
inline Vec mul(Vec a, Vec b) { return {_mm512_mul_ps(a.r, b.r)}; }
inline Vec div(Vec a, Vec b) { return {_mm512_div_ps(a.r, b.r)}; }
inline Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.r, b.r, c.r)}; }
inline Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.r, b.r)}; }
inline Vec min(Vec a, Vec b) { return {_mm512_min_ps(a.r, b.r)}; }
inline Vec round_even(Vec a) { return {_mm512_roundscale_ps(a.r, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
inline Vec scale_by_power(Vec a, Vec n) {
  const __m512i biased = _mm512_add_epi32(_mm512_cvtps_epi32(n.r), _mm512_set1_epi32(127));
  return {_mm512_mul_ps(a.r, _mm512_castsi512_ps(_mm512_slli_epi32(biased, 23)))};
}
inline __m256 upper(__m512 a) { return _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(a), 1)); }
inline float sum(Vec a) {
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(a.r), upper(a.r));
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  four = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(four, _mm_shuffle_ps(four, four, 1)));
}
// Eight times sum() in a third of the instructions: the same additions, side by side.
inline __m512 add_halves(__m512 a, __m512 b) {  // a's in the lower half, b's in the upper
  return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
}
inline __m512 add_quarters(__m512 a, __m512 b) {  // of each half, from the lowest quarter: a, a, b, b
  return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
}
inline __m512 add_distant(__m512 a, __m512 b) {  // in each quarter: a0+a2, a1+a3, b0+b2, b1+b3
  return _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xee));
}
inline __m512 add_neighbours(__m512 a) {  // in each quarter: a0+a1, a2+a3, twice
  return _mm512_add_ps(_mm512_shuffle_ps(a, a, 0x88), _mm512_shuffle_ps(a, a, 0xdd));
}
inline void sum8(const Vec *a, float *out) {
  __m512 two[4];
  for (int i = 0; i < 4; ++i) two[i] = add_halves(a[2 * i].r, a[2 * i + 1].r);
  const __m512 sums = add_neighbours(add_distant(add_quarters(two[0], two[1]), add_quarters(two[2], two[3])));
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 0, 4, 8, 12, 1, 5, 9, 13);
  _mm256_storeu_ps(out, _mm512_castps512_ps256(_mm512_permutexvar_ps(order, sums)));
}
inline float maximum(Vec a) {
  const __m256 eight = _mm256_max_ps(_mm512_castps512_ps256(a.r), upper(a.r));
  __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  four = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(four, _mm_shuffle_ps(four, four, 1)));
}

}  // namespace
}  // namespace qk
