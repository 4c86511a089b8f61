// See int8_vnni.cpp; int8_amx.cpp uses it for few tokens. Included behind the compiler's target.
#pragma once
#include <immintrin.h>

#include "int8.h"

namespace qk {
namespace int8_vnni {
namespace {

constexpr int kMost = 8;            // tokens at once
constexpr int64_t kAhead = 4096;    // bytes of codes that are fetched before they are needed

inline __m512 halves(const uint16_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p))); }
inline __m512i bytes(const uint8_t *p) { return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p))); }

inline void round_unit(const float *x, int64_t count, int8_t *codes, float *scale, int32_t *sum) {
  const __m512 zero = _mm512_setzero_ps();
  __m512 most = zero, finite = zero;  // 0, or NaN
  const auto lanes = [count](int64_t i) {
    return static_cast<__mmask16>(count - i >= 16 ? 0xffff : (1u << (count - i)) - 1);
  };
  for (int64_t i = 0; i < count; i += 16) {
    const __m512 v = _mm512_maskz_loadu_ps(lanes(i), x + i);
    most = _mm512_max_ps(_mm512_abs_ps(v), most);
    finite = _mm512_fmadd_ps(v, zero, finite);
  }
  const float highest = _mm512_reduce_max_ps(most), wrong = _mm512_reduce_add_ps(finite);
  const bool is_plain = highest > kInt8Least && wrong == 0.0f;
  const __m512 inverse = _mm512_set1_ps(is_plain ? 127.0f / highest : 0.0f);
  __m512i total = _mm512_setzero_si512();
  for (int64_t i = 0; i < count; i += 16) {
    const __m512 v = _mm512_maskz_loadu_ps(lanes(i), x + i);
    const __m512i code = is_plain ? _mm512_cvtps_epi32(_mm512_mul_ps(v, inverse)) : _mm512_setzero_si512();
    total = _mm512_add_epi32(total, code);
    _mm_mask_storeu_epi8(codes + i, lanes(i), _mm512_cvtepi32_epi8(code));
  }
  *scale = is_plain ? highest / 127.0f : wrong;
  *sum = _mm512_reduce_add_epi32(total);
}

inline void round_rows(const float *x, int64_t stride, int64_t n, const Int8Rows &to) {
  for (int t = 0; t < to.count; ++t)
    for (int64_t u = 0; u < to.units; ++u)
      round_unit(x + t * stride + u * to.unit, std::min(to.unit, n - u * to.unit), to.codes + t * to.stride + u * to.unit,
                 to.scales + t * to.units + u, to.sums + t * to.units + u);
}

inline __m512i four(const int8_t *p) {  // neighbouring codes, in every lane
  int32_t word;
  __builtin_memcpy(&word, p, 4);
  return _mm512_set1_epi32(word);
}

// Thirty-two inputs of a panel times S tokens, added to the integers.
template <bool k4, int S>
__attribute__((always_inline)) inline void chunk(const uint8_t *codes, const int8_t *x, int64_t stride, __m512i *sums) {
  const __m512i low = _mm512_set1_epi8(15);
#pragma GCC unroll 8
  for (int j = 0; j < (k4 ? 4 : 8); ++j) {
    const __m512i raw = _mm512_loadu_si512(codes + j * 64);
    _mm_prefetch(reinterpret_cast<const char *>(codes) + kAhead + j * 64, _MM_HINT_T0);
    if (!k4) {
#pragma GCC unroll 8
      for (int s = 0; s < S; ++s) sums[s] = _mm512_dpbusd_epi32(sums[s], raw, four(x + s * stride + j * 4));
      continue;
    }
    const __m512i first = _mm512_and_si512(raw, low), second = _mm512_and_si512(_mm512_srli_epi16(raw, 4), low);
#pragma GCC unroll 8
    for (int s = 0; s < S; ++s) {
      sums[s] = _mm512_dpbusd_epi32(sums[s], first, four(x + s * stride + j * 4));
      sums[s] = _mm512_dpbusd_epi32(sums[s], second, four(x + s * stride + 16 + j * 4));
    }
  }
}

// One panel times S tokens from `token` on.
template <bool k4, int S>
inline void panel_product(const QkMatrix &m, const Panel &panel, int64_t n, const Int8Rows &x, int token, __m512 *out) {
  const int8_t *codes = x.codes + token * x.stride;
  const float *scales = x.scales + token * x.units;
  const int32_t *inputs = x.sums + token * x.units;
  const uint8_t *weights = panel.codes;
  const __m512i middle = _mm512_set1_epi32(k4 ? -8 : -128), none = _mm512_setzero_si512();
  __m512 sums[S];
  for (int s = 0; s < S; ++s) sums[s] = _mm512_setzero_ps();
  int64_t group = 0, left = m.group;
  for (int64_t u = 0, from = 0; u < x.units; ++u) {
    const int64_t end = std::min(from + x.unit, n), at = group * kPanel;
    left -= x.unit;
    if (left <= 0) ++group, left = m.group;
    const __m512 scale = halves(panel.scales + at);
    __m512i offset = panel.mins ? none : middle, integers[S];
    if (panel.zeros) offset = _mm512_sub_epi32(none, bytes(panel.zeros + at));
    for (int s = 0; s < S; ++s)
      integers[s] = panel.mins ? none : _mm512_mullo_epi32(offset, _mm512_set1_epi32(inputs[s * x.units + u]));
    for (; from < end; from += kChunkOf, weights += k4 ? 256 : 512)
      chunk<k4, S>(weights, codes + from, x.stride, integers);
    for (int s = 0; s < S; ++s) {
      const __m512 unit = _mm512_set1_ps(scales[s * x.units + u]);
      sums[s] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(integers[s]), _mm512_mul_ps(scale, unit), sums[s]);
    }
    if (!panel.mins) continue;
    const __m512 least = halves(panel.mins + at);
    for (int s = 0; s < S; ++s) {
      const float of_unit = scales[s * x.units + u] * static_cast<float>(inputs[s * x.units + u]);
      sums[s] = _mm512_fmadd_ps(least, _mm512_set1_ps(of_unit), sums[s]);
    }
  }
  for (int s = 0; s < S; ++s) out[s] = sums[s];
}

inline void put(const Int8Results &to, int token, int row, __m512 sum, __m512 bias) {
  float *out = to.out + token * to.width + row;
  if (to.bias) sum = _mm512_add_ps(sum, bias);
  if (to.adds) sum = _mm512_add_ps(_mm512_loadu_ps(out), sum);
  _mm512_storeu_ps(out, sum);
}

template <bool k4, int S>
inline void panel_tokens(const QkMatrix &m, const Panel &panel, int64_t n, const Int8Rows &x, int token, int row,
                         const Int8Results &to, __m512 bias) {
  __m512 sums[S];
  panel_product<k4, S>(m, panel, n, x, token, sums);
  for (int s = 0; s < S; ++s) put(to, token + s, row, sums[s], bias);
}

template <bool k4>
inline void products(const QkMatrix &m, int64_t n, int64_t first, int count, const Int8Rows &x, const Int8Results &to) {
  for (int p = 0; p < count; ++p) {
    const Panel panel(m, n, first + p);
    float all[kPanel];
    to.bias_of(p * kPanel, all);
    const __m512 bias = _mm512_loadu_ps(all);
    for (int t = 0; t < x.count;) {
      const int left = x.count - t, row = p * kPanel;
      switch (left < kMost ? left : kMost) {
        case 8: panel_tokens<k4, 8>(m, panel, n, x, t, row, to, bias), t += 8; break;
        case 7: panel_tokens<k4, 7>(m, panel, n, x, t, row, to, bias), t += 7; break;
        case 6: panel_tokens<k4, 6>(m, panel, n, x, t, row, to, bias), t += 6; break;
        case 5: panel_tokens<k4, 5>(m, panel, n, x, t, row, to, bias), t += 5; break;
        case 4: panel_tokens<k4, 4>(m, panel, n, x, t, row, to, bias), t += 4; break;
        case 3: panel_tokens<k4, 3>(m, panel, n, x, t, row, to, bias), t += 3; break;
        case 2: panel_tokens<k4, 2>(m, panel, n, x, t, row, to, bias), t += 2; break;
        default: panel_tokens<k4, 1>(m, panel, n, x, t, row, to, bias), t += 1;
      }
    }
  }
}

inline void product(const QkMatrix &m, int64_t n, int64_t first, int count, const Int8Rows &x, const Int8Results &to, uint8_t *) {
  if (m.format == QK_PANEL4) products<true>(m, n, first, count, x, to);
  else products<false>(m, n, first, count, x, to);
}

}  // namespace
}  // namespace int8_vnni
}  // namespace qk
