// Keys and values of a tile of tokens into the pages of the cache, and int8 pages back to what the products want.
// Included behind the compiler's target.
#pragma once
#include "amx_lanes.h"
#include "native.h"

namespace qk {
namespace {

// Tokens side by side in a tile that lie side by side in a page.
struct Run {
  int lane, count;  // of the tile
  int slot;         // of the page, of the first
  bool last;        // the span ends with them
  int64_t page;
};

// One block of the pool: a page of one layer and key head.
struct PageBlock {
  void *keys, *values;
  uint16_t *key_scale, *value_scale;
  uint8_t *key_zero, *value_zero;
};

inline PageBlock page_block(const QkPool &pool, const QkModel &m, int64_t page, int layer, int kv_head) {
  const int64_t block = (page * m.layers + layer) * m.kv_heads + kv_head;
  const int64_t bytes = block * QK_PAGE * m.head_dim * (pool.int8 ? 1 : 2), tokens = block * QK_PAGE;
  PageBlock out{static_cast<char *>(pool.keys) + bytes, static_cast<char *>(pool.values) + bytes};
  if (!pool.int8) return out;
  out.key_scale = pool.key_scale + tokens, out.value_scale = pool.value_scale + tokens;
  out.key_zero = pool.key_zero + tokens, out.value_zero = pool.value_zero + tokens;
  return out;
}

// x (d, token).
inline void store_keys(const PageBlock &block, const Run &run, const float *x, int d) {
  uint32_t *to = static_cast<uint32_t *>(block.keys) + run.slot - run.lane;  // (i / 2, t)
  const __mmask16 lanes = lane_mask(run.lane, run.count);
  for (int i = 0; i < d; i += 2)
    _mm512_mask_storeu_epi32(to + i / 2 * QK_PAGE, lanes, pair(read(x + i * kLanes), read(x + (i + 1) * kLanes)));
}

// x (token, i - from) of 16 numbers from `from` on. What a pair of tokens lacks is zero if the span ends there:
// a value that no query sees is multiplied with 0, which must not meet an old NaN.
inline void store_values(const PageBlock &block, const Run &run, const __m512i *x, int from, int d) {
  uint32_t *to = static_cast<uint32_t *>(block.values) + from;  // (t / 2, i)
  const __m512 zero = set(0.0f);
  int t = run.slot;
  const int end = run.slot + run.count;
  const auto row = [&](int slot) { return _mm512_castsi512_ps(x[slot - run.slot + run.lane]); };
  if (t & 1) {
    _mm512_mask_storeu_epi16(to + t / 2 * d, 0xaaaaaaaa, pair(zero, row(t)));
    ++t;
  }
  for (; t + 1 < end; t += 2) write(to + t / 2 * d, pair(row(t), row(t + 1)));
  if (t < end) _mm512_mask_storeu_epi16(to + t / 2 * d, run.last ? 0xffffffff : 0x55555555, pair(row(t), zero));
  if (!run.last) return;
  for (t = (end + 1) / 2; t < QK_PAGE / 2; ++t) write(to + t * d, _mm512_setzero_si512());
}

// How the numbers of one token become bytes: x = scale * (byte - zero), in every lane another token.
struct Levels {
  __m512 scale;  // a bfloat16
  __m512 zero;
  __mmask16 finite;  // the others' scale is stored as NaN
};

inline __m512 nearest(__m512 x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

inline Levels levels(const float *x, int d) {
  __m512 low = set(0.0f), high = set(0.0f);  // zero is always a level
  __mmask16 wrong = 0;
  constexpr int not_finite = 0x99;
  for (int i = 0; i < d; ++i) {
    const __m512 v = read(x + i * kLanes);
    low = _mm512_min_ps(low, v);
    high = _mm512_max_ps(high, v);
    wrong |= _mm512_fpclass_ps_mask(v, not_finite);
  }
  const __m512 exact = _mm512_max_ps(_mm512_div_ps(_mm512_sub_ps(high, low), set(255.0f)), set(0x1p-100f));
  wrong |= _mm512_fpclass_ps_mask(exact, not_finite);
  __m512i bits = _mm512_add_epi32(_mm512_castps_si512(exact), _mm512_set1_epi32(0xffff));  // up to the next bfloat16
  bits = _mm512_and_si512(bits, _mm512_set1_epi32(static_cast<int>(0xffff0000)));
  const __m512 scale = _mm512_castsi512_ps(bits);
  const __m512 zero = nearest(_mm512_div_ps(_mm512_sub_ps(set(0.0f), low), scale));
  const __mmask16 finite = static_cast<__mmask16>(~wrong);
  return {scale, _mm512_maskz_min_ps(finite, set(255.0f), zero), finite};
}

inline __m128i to_bytes(__m512 x, const Levels &l) {
  const __m512 level = _mm512_add_ps(nearest(_mm512_div_ps(x, l.scale)), l.zero);
  const __m512 byte = _mm512_maskz_min_ps(l.finite, set(255.0f), _mm512_max_ps(set(0.0f), level));
  return _mm512_cvtusepi32_epi8(_mm512_cvtps_epi32(byte));
}

inline void store_levels(uint16_t *scales, uint8_t *zeros, const Run &run, const Levels &l) {
  const __mmask16 lanes = lane_mask(run.lane, run.count);
  const __m512i bits = _mm512_srli_epi32(_mm512_castps_si512(l.scale), 16);
  const __m256i scale = _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(_mm512_set1_epi32(0x7fc0), l.finite, bits));
  _mm256_mask_storeu_epi16(scales + run.slot - run.lane, lanes, scale);
  _mm_mask_storeu_epi8(zeros + run.slot - run.lane, lanes, _mm512_cvtusepi32_epi8(_mm512_cvtps_epi32(l.zero)));
}

inline void store_key_bytes(const PageBlock &block, const Run &run, const float *x, int d, const Levels &l) {
  uint8_t *to = static_cast<uint8_t *>(block.keys) + run.slot - run.lane;  // (i, t)
  const __mmask16 lanes = lane_mask(run.lane, run.count);
  for (int i = 0; i < d; ++i) _mm_mask_storeu_epi8(to + i * QK_PAGE, lanes, to_bytes(read(x + i * kLanes), l));
  store_levels(block.key_scale, block.key_zero, run, l);
}

inline void store_value_bytes(const PageBlock &block, const Run &run, const __m128i *bytes, int from, int d) {
  uint8_t *to = static_cast<uint8_t *>(block.values) + from;  // (t, i)
  for (int r = 0; r < run.count; ++r)
    _mm_storeu_si128(reinterpret_cast<__m128i *>(to + (run.slot + r) * d), bytes[run.lane + r]);
}

// Thirty-two differences of bytes and zeros as bfloat16, which holds them exactly: in every lane a pair (even, odd).
inline __m512i difference(__m512i even, __m512i odd) { return pair(_mm512_cvtepi32_ps(even), _mm512_cvtepi32_ps(odd)); }

inline __m512i read_bytes(const uint8_t *p) {
  return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)));
}

// bytes (i, t) -> byte - zero (i / 2, t, i % 2)
inline void expand_keys(const PageBlock &block, int d, uint16_t *out) {
  for (int half = 0; half < QK_PAGE; half += kLanes) {
    const __m512i zero = read_bytes(block.key_zero + half);
    const uint8_t *from = static_cast<const uint8_t *>(block.keys) + half;
    for (int i = 0; i < d; i += 2)
      write(out + i * QK_PAGE + half * 2, difference(_mm512_sub_epi32(read_bytes(from + i * QK_PAGE), zero),
                                                     _mm512_sub_epi32(read_bytes(from + (i + 1) * QK_PAGE), zero)));
  }
}

// bytes (t, i) -> byte - zero (t / 2, i, t % 2)
inline void expand_values(const PageBlock &block, int d, uint16_t *out) {
  for (int t = 0; t < QK_PAGE; t += 2) {
    const __m512i even = _mm512_set1_epi32(block.value_zero[t]), odd = _mm512_set1_epi32(block.value_zero[t + 1]);
    const uint8_t *from = static_cast<const uint8_t *>(block.values) + t * d;
    for (int i = 0; i < d; i += kLanes)
      write(out + t * d + i * 2,
            difference(_mm512_sub_epi32(read_bytes(from + i), even), _mm512_sub_epi32(read_bytes(from + d + i), odd)));
  }
}

}  // namespace
}  // namespace qk
