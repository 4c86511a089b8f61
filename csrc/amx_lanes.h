// Sixteen tokens in the lanes of AVX-512 registers: what the AMX variant does apart from matrix products.
// Included behind the compiler's target, like the vector_*.h.
#pragma once
#include <immintrin.h>

#include <cstdint>

namespace qk {
namespace {

constexpr int kLanes = 16;
constexpr float kLog2e = 1.44269504f;

inline __m512 set(float x) { return _mm512_set1_ps(x); }
inline __m512 read(const float *p) { return _mm512_loadu_ps(p); }
inline void write(float *p, __m512 a) { _mm512_storeu_ps(p, a); }
inline void write(void *p, __m512i a) { _mm512_storeu_si512(p, a); }

inline float widen(uint16_t x) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  float f;
  __builtin_memcpy(&f, &bits, 4);
  return f;
}

inline uint16_t lane_mask(int first, int count) { return static_cast<uint16_t>(((1u << count) - 1) << first); }

// Two neighbouring bfloat16 numbers, each in all lanes.
struct Both {
  __m512 even, odd;
};
inline Both read_both(const uint16_t *p) {
  int32_t word;
  __builtin_memcpy(&word, p, 4);
  const __m512i all = _mm512_set1_epi32(word);
  return {_mm512_castsi512_ps(_mm512_slli_epi32(all, 16)),
          _mm512_castsi512_ps(_mm512_and_si512(all, _mm512_set1_epi32(static_cast<int>(0xffff0000))))};
}

// Thirty-two bfloat16 numbers, those of `low` first.
inline __m512i narrow(__m512 low, __m512 high) { return (__m512i)_mm512_cvtne2ps_pbh(high, low); }

// In every lane the two numbers side by side, as the products want them.
inline __m512i pair(__m512 even, __m512 odd) {
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21,
                                         5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return _mm512_permutexvar_epi16(order, narrow(even, odd));
}

// 2^x, to 3e-6, for x below 127; 0 far below. NaN stays NaN, 2^0 is exactly 1.
inline __m512 power2(__m512 x) {
  const __m512 n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 r = _mm512_sub_ps(x, n);
  __m512 y = _mm512_fmadd_ps(set(1.3333558e-3f), r, set(9.6181291e-3f));  // ln(2)^k / k!
  y = _mm512_fmadd_ps(y, r, set(5.5504109e-2f));
  y = _mm512_fmadd_ps(y, r, set(2.4022651e-1f));
  y = _mm512_fmadd_ps(y, r, set(6.9314718e-1f));
  y = _mm512_fmadd_ps(y, r, set(1.0f));
  return _mm512_scalef_ps(y, n);
}

// x / (1 + exp(-x))
inline __m512 silu(__m512 x) {
  const __m512 y = _mm512_add_ps(set(1.0f), power2(_mm512_min_ps(set(126.0f), _mm512_mul_ps(x, set(-kLog2e)))));
  const __m512 rough = _mm512_rcp14_ps(y);
  const __m512 inverse = _mm512_mul_ps(rough, _mm512_fnmadd_ps(y, rough, set(2.0f)));
  return _mm512_mul_ps(x, inverse);
}

// Rows and columns of sixteen times sixteen words change places.
inline void transpose(__m512i *r) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 4) {
    const __m512i a = _mm512_unpacklo_epi32(r[i], r[i + 1]), b = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    const __m512i c = _mm512_unpacklo_epi32(r[i + 2], r[i + 3]), d = _mm512_unpackhi_epi32(r[i + 2], r[i + 3]);
    t[i] = _mm512_unpacklo_epi64(a, c);
    t[i + 1] = _mm512_unpackhi_epi64(a, c);
    t[i + 2] = _mm512_unpacklo_epi64(b, d);
    t[i + 3] = _mm512_unpackhi_epi64(b, d);
  }
  for (int i = 0; i < 4; ++i) {
    const __m512i a = _mm512_shuffle_i32x4(t[i], t[4 + i], 0x88), b = _mm512_shuffle_i32x4(t[8 + i], t[12 + i], 0x88);
    const __m512i c = _mm512_shuffle_i32x4(t[i], t[4 + i], 0xdd), d = _mm512_shuffle_i32x4(t[8 + i], t[12 + i], 0xdd);
    r[i] = _mm512_shuffle_i32x4(a, b, 0x88);
    r[i + 8] = _mm512_shuffle_i32x4(a, b, 0xdd);
    r[i + 4] = _mm512_shuffle_i32x4(c, d, 0x88);
    r[i + 12] = _mm512_shuffle_i32x4(c, d, 0xdd);
  }
}

// In every lane 1 / root mean square of its n numbers x[0], x[16], ...; n is even.
inline __m512 inverse_rms(const float *x, int64_t n, float eps) {
  __m512 sums[4] = {set(0.0f), set(0.0f), set(0.0f), set(0.0f)};
  for (int64_t i = 0; i < n; ++i) {
    const __m512 v = read(x + i * kLanes);
    sums[i & 3] = _mm512_fmadd_ps(v, v, sums[i & 3]);
  }
  const __m512 sum = _mm512_add_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_add_ps(sums[2], sums[3]));
  const __m512 mean = _mm512_div_ps(sum, set(static_cast<float>(n)));
  return _mm512_div_ps(set(1.0f), _mm512_sqrt_ps(_mm512_add_ps(mean, set(eps))));
}

// RMSNorm of a tile of tokens; put(i, even, odd) takes numbers i and i + 1 of all lanes.
template <class Put>
inline void norm_lanes(const float *x, const uint16_t *weight, int64_t n, float eps, const Put &put) {
  const __m512 scale = inverse_rms(x, n, eps);
  for (int64_t i = 0; i < n; i += 2) {
    const Both w = read_both(weight + i);
    put(i, _mm512_mul_ps(_mm512_mul_ps(read(x + i * kLanes), scale), w.even),
        _mm512_mul_ps(_mm512_mul_ps(read(x + (i + 1) * kLanes), scale), w.odd));
  }
}

}  // namespace
}  // namespace qk
