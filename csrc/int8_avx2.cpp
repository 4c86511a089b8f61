// Products with 8-bit activations for CPUs with AVX2.
#if defined(__x86_64__)
#include <immintrin.h>

#include <cmath>

#include "int8.h"

// From here on only: inline functions of the standard headers above must stay runnable on every CPU.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif

namespace qk {
namespace {

constexpr int kMost = 4;  // tokens at once

inline float highest(__m256 a) {
  __m128 four = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  four = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(four, _mm_shuffle_ps(four, four, 1)));
}

inline void round_unit(const float *x, int64_t count, int8_t *codes, float *scale, int32_t *sum) {
  const __m256 sign = _mm256_set1_ps(-0.0f), zero = _mm256_setzero_ps();
  __m256 most = zero, wrongs = zero;
  for (int64_t i = 0; i < count; i += 8) {
    const __m256 v = _mm256_loadu_ps(x + i);
    most = _mm256_max_ps(_mm256_andnot_ps(sign, v), most);
    wrongs = _mm256_fmadd_ps(v, zero, wrongs);
  }
  const float top = highest(most);
  const bool is_finite = _mm256_movemask_ps(_mm256_cmp_ps(wrongs, zero, _CMP_EQ_OQ)) == 255;
  const bool is_plain = top > kInt8Least && is_finite;
  const float inverse = is_plain ? 127.0f / top : 0.0f;
  int32_t total = 0;
  for (int64_t i = 0; i < count; i += 8) {
    alignas(32) int32_t eight[8] = {};
    if (is_plain)
      _mm256_store_si256(reinterpret_cast<__m256i *>(eight),
                         _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + i), _mm256_set1_ps(inverse))));
    for (int k = 0; k < 8; ++k) codes[i + k] = static_cast<int8_t>(eight[k]), total += eight[k];
  }
  *scale = is_plain ? top / 127.0f : is_finite ? 0.0f : NAN;
  *sum = total;
}

void round_rows(const float *x, int64_t stride, int64_t n, const Int8Rows &to) {
  for (int t = 0; t < to.count; ++t)
    for (int64_t u = 0; u < to.units; ++u)
      round_unit(x + t * stride + u * to.unit, std::min(to.unit, n - u * to.unit), to.codes + t * to.stride + u * to.unit,
                 to.scales + t * to.units + u, to.sums + t * to.units + u);
}

inline __m256i four(const int8_t *p) {
  int32_t word;
  __builtin_memcpy(&word, p, 4);
  return _mm256_set1_epi32(word);
}

// sum += eight times four products. Codes of 8 bits are 128 too low, so that pairs of products fit 16 bits.
template <bool k4>
inline __m256i add_products(__m256i sum, __m256i codes, __m256i x) {
  const __m256i pairs = k4 ? _mm256_maddubs_epi16(codes, x)
                           : _mm256_maddubs_epi16(_mm256_abs_epi8(codes), _mm256_sign_epi8(x, codes));
  return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

inline __m256i load(const uint8_t *p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)); }

// Eight rows, the first or the second half of a panel, times S tokens.
template <bool k4, int S>
inline void half_product(const QkMatrix &m, const Panel &panel, int half, int64_t n, const Int8Rows &x, int token,
                         __m256 *sums) {
  const uint8_t *weights = panel.codes + half * 32;
  const __m256i low = _mm256_set1_epi8(15), offset = _mm256_set1_epi8(-128);
  for (int s = 0; s < S; ++s) sums[s] = _mm256_setzero_ps();
  for (int64_t u = 0, from = 0; u < x.units; ++u) {
    const int64_t end = std::min(from + x.unit, n), at = from / m.group * kPanel + half * 8;
    const auto halves = [](const uint16_t *p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p))); };
    const __m256 scale = halves(panel.scales + at);
    __m256i integers[S];
    for (int s = 0; s < S; ++s) integers[s] = _mm256_setzero_si256();
    for (; from < end; from += kChunkOf)
      for (int j = 0; j < (k4 ? 4 : 8); ++j, weights += 64) {
        const __m256i raw = load(weights);
        const int8_t *codes = x.codes + token * x.stride + from + j * 4;
        for (int s = 0; s < S; ++s) {
          if (!k4) {
            integers[s] = add_products<k4>(integers[s], _mm256_xor_si256(raw, offset), four(codes + s * x.stride));
            continue;
          }
          integers[s] = add_products<k4>(integers[s], _mm256_and_si256(raw, low), four(codes + s * x.stride));
          const __m256i second = _mm256_and_si256(_mm256_srli_epi16(raw, 4), low);
          integers[s] = add_products<k4>(integers[s], second, four(codes + s * x.stride + 16));
        }
      }
    // What is still to be added for each input: the 128 that codes lack, less the zeros.
    __m256i rest = _mm256_set1_epi32(k4 ? (panel.mins ? 0 : -8) : (panel.mins ? 128 : 0));
    if (panel.zeros) {
      const __m256i zeros = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(panel.zeros + at)));
      rest = _mm256_sub_epi32(_mm256_set1_epi32(k4 ? 0 : 128), zeros);
    }
    for (int s = 0; s < S; ++s) {
      const int64_t of = (token + s) * x.units + u;
      const __m256i exact = _mm256_add_epi32(integers[s], _mm256_mullo_epi32(rest, _mm256_set1_epi32(x.sums[of])));
      sums[s] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(exact), _mm256_mul_ps(scale, _mm256_set1_ps(x.scales[of])), sums[s]);
      if (panel.mins)
        sums[s] = _mm256_fmadd_ps(halves(panel.mins + at), _mm256_set1_ps(x.scales[of] * static_cast<float>(x.sums[of])), sums[s]);
    }
  }
}

template <bool k4, int S>
inline void half_tokens(const QkMatrix &m, const Panel &panel, int64_t n, int row, const Int8Rows &x, int token,
                        const Int8Results &to, const float *bias) {
  for (int half = 0; half < 2; ++half) {
    __m256 sums[S];
    half_product<k4, S>(m, panel, half, n, x, token, sums);
    for (int s = 0; s < S; ++s) {
      float *out = to.out + (token + s) * to.width + row + half * 8;
      if (to.bias) sums[s] = _mm256_add_ps(sums[s], _mm256_loadu_ps(bias + half * 8));
      if (to.adds) sums[s] = _mm256_add_ps(_mm256_loadu_ps(out), sums[s]);
      _mm256_storeu_ps(out, sums[s]);
    }
  }
}

template <bool k4>
void products(const QkMatrix &m, int64_t n, int64_t first, int count, const Int8Rows &x, const Int8Results &to) {
  for (int p = 0; p < count; ++p) {
    const Panel panel(m, n, first + p);
    float bias[kPanel];
    to.bias_of(p * kPanel, bias);
    int t = 0;
    for (; t + kMost <= x.count; t += kMost) half_tokens<k4, kMost>(m, panel, n, p * kPanel, x, t, to, bias);
    for (; t < x.count; ++t) half_tokens<k4, 1>(m, panel, n, p * kPanel, x, t, to, bias);
  }
}

void product(const QkMatrix &m, int64_t n, int64_t first, int count, const Int8Rows &x, const Int8Results &to, uint8_t *) {
  if (m.format == QK_PANEL4) products<true>(m, n, first, count, x, to);
  else products<false>(m, n, first, count, x, to);
}

}  // namespace

const Int8Kernels kInt8Avx2{round_rows, product};

}  // namespace qk

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
