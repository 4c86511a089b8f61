// Sixteen floats in one AVX-512 register; see vector_portable.h for what each function does.
#pragma once
#include <immintrin.h>

#include <cstdint>

namespace qk {
namespace {

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
inline Vec add(Vec a, Vec b) { return {_mm512_add_ps(a.r, b.r)}; }
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
inline float maximum(Vec a) {
  const __m256 eight = _mm256_max_ps(_mm512_castps512_ps256(a.r), upper(a.r));
  __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  four = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(four, _mm_shuffle_ps(four, four, 1)));
}

}  // namespace
}  // namespace qk
