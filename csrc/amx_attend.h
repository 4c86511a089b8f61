// Attention of up to sixteen queries of one key head over the pages of their sequence.
// Included behind the compiler's target.
//
// Keys are taken in chunks of kChunk that start at multiples of it, and a key that a query does not see adds exactly
// nothing to its sums: so a query's result depends neither on the queries beside it nor on where chunks or windows of
// others begin.
#pragma once
#include <algorithm>

#include "amx_cache.h"
#include "amx_tiles.h"

namespace qk {
namespace {

constexpr int kChunkPages = 8;
constexpr int kChunk = kChunkPages * QK_PAGE;
constexpr float kLowest = -1e30f;  // below every score; its difference with itself is 0

// Queries of one head in the rows of a tile, or several heads' of one token.
struct Queries {
  const uint16_t *q;  // of row 0
  int64_t stride;     // numbers from row to row
  int first, count;   // rows of interest
  int64_t position;   // of the first of them
  int step;           // from row to row, 1 or 0
};

// What the chunks so far have made of a tile of queries.
struct Progress {
  alignas(64) float top[kLanes];
  float fade[kLanes];  // what the sums so far are multiplied with
  alignas(64) float total[kLanes][kLanes];  // sums of exponentials, by key % 16
  float *sums;                              // (16, d) exponentials times values

  void start(const Queries &rows) {
    for (int r = rows.first; r < rows.first + rows.count; ++r) top[r] = kLowest, write(total[r], set(0.0f));
  }
};

// Pages of one chunk, as the products want them.
struct Chunk {
  int64_t first_page, num_pages;  // in the sequence
  bool is_first;                  // of the queries' chunks
  bool fetches;                   // the pages are not in the cache yet
  const uint16_t *keys[kChunkPages], *values[kChunkPages];
};

struct Scratch {
  alignas(64) float scores[kChunk / kLanes][kTile];  // (key / 16, query, key % 16)
  alignas(64) uint16_t weights[kChunkPages][kLanes * QK_PAGE];  // (page, query, key)
  alignas(64) float key_scale[kChunk], value_scale[kChunk];  // int8 only
};

// Of a page of keys. What is read after it is fetched meanwhile: for a few queries memory is what takes the time.
inline void score_page(const Queries &rows, const Chunk &chunk, int page, int d, float *out) {
  const uint16_t *keys = chunk.keys[page], *values = chunk.values[page];
  const uint16_t *next = page + 1 < chunk.num_pages ? chunk.keys[page + 1] : values;
  const int64_t stride = rows.stride * sizeof *rows.q;
  _tile_zero(0);
  _tile_zero(1);
  for (int i = 0; i < d; i += kDepth) {
    _tile_loadd(4, rows.q + i, stride);
    _tile_loadd(6, keys + i * QK_PAGE, QK_PAGE * 4);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, keys + i * QK_PAGE + 2 * kLanes, QK_PAGE * 4);
    _tile_dpbf16ps(1, 4, 7);
    if (!chunk.fetches) continue;
    for (int line = 0; line < 2; ++line) {
      fetch(next + i * QK_PAGE, line);
      fetch(values + i * QK_PAGE, line);
    }
  }
  _tile_stored(0, out, 64);
  _tile_stored(1, out + kTile, 64);
}

// Keys of a chunk that a query sees: [from, to).
struct Seen {
  int from, to;

  Seen(const Chunk &chunk, int64_t low, int64_t high) {
    const int64_t start = chunk.first_page * QK_PAGE, size = chunk.num_pages * QK_PAGE;
    from = static_cast<int>(std::min(std::max<int64_t>(low - start, 0), size));
    to = static_cast<int>(std::max<int64_t>(std::min(high - start, size), from));
  }

  // Of a block of sixteen.
  __mmask16 lanes(int block) const {
    const int first = std::min(std::max(from - block * kLanes, 0), kLanes);
    const int last = std::min(std::max(to - block * kLanes, first), kLanes);
    return lane_mask(first, last - first);
  }
  bool all(int page) const { return from <= page * QK_PAGE && to >= (page + 1) * QK_PAGE; }
  bool none(int page) const { return from >= (page + 1) * QK_PAGE || to <= page * QK_PAGE; }
};

// Scores of a page's keys and what becomes of them. Int8: the sums are still to be multiplied with the keys' scales.
template <bool kInt8>
struct Page {
  const Scratch &s;
  const int page, row;

  __m512 score(int half) const {
    const __m512 raw = read(s.scores[page * 2 + half] + row * kLanes);
    return kInt8 ? _mm512_mul_ps(raw, read(s.key_scale + page * QK_PAGE + half * kLanes)) : raw;
  }
  __m512 exponential(int half, __m512 scale, __m512 top) const {
    return power2(_mm512_fmsub_ps(score(half), scale, top));
  }
  // Masked because the scale of a token that is not there may be anything.
  __m512 weight(int half, __m512 e, __mmask16 lanes) const {
    return kInt8 ? _mm512_maskz_mul_ps(lanes, e, read(s.value_scale + page * QK_PAGE + half * kLanes)) : e;
  }
};

// The highest score of a query, the chunks before included.
template <bool kInt8>
inline float highest(const Scratch &s, int pages, int row, float scale, const Seen &seen, float top) {
  __m512 even = set(kLowest), odd = even;
  for (int p = 0; p < pages; ++p) {
    const Page<kInt8> page{s, p, row};
    if (seen.all(p)) {
      even = _mm512_max_ps(even, page.score(0));
      odd = _mm512_max_ps(odd, page.score(1));
    } else if (!seen.none(p)) {
      even = _mm512_mask_max_ps(even, seen.lanes(2 * p), even, page.score(0));
      odd = _mm512_mask_max_ps(odd, seen.lanes(2 * p + 1), odd, page.score(1));
    }
  }
  return std::max(top, _mm512_reduce_max_ps(_mm512_max_ps(even, odd)) * scale);
}

// Scores of a query -> weights, and their sums. What it does not see weighs zero.
template <bool kInt8>
inline void weigh(Scratch &s, int pages, int row, float scale, const Seen &seen, float top, float *total) {
  const __m512 scales = set(scale), tops = set(top);
  __m512 even = read(total), odd = set(0.0f);
  for (int p = 0; p < pages; ++p) {
    const Page<kInt8> page{s, p, row};
    uint16_t *to = s.weights[p] + row * QK_PAGE;
    if (seen.none(p)) {
      write(to, _mm512_setzero_si512());
      continue;
    }
    __m512 low = page.exponential(0, scales, tops), high = page.exponential(1, scales, tops);
    __mmask16 first = 0xffff, second = 0xffff;
    if (!seen.all(p)) {
      first = seen.lanes(2 * p), second = seen.lanes(2 * p + 1);
      low = _mm512_maskz_mov_ps(first, low), high = _mm512_maskz_mov_ps(second, high);
    }
    even = _mm512_add_ps(even, low), odd = _mm512_add_ps(odd, high);
    write(to, narrow(page.weight(0, low, first), page.weight(1, high, second)));
  }
  write(total, _mm512_add_ps(even, odd));
}

// sums += weights times values, four tiles of 16 numbers at a time.
inline void add_values(const Scratch &s, const Chunk &chunk, int d, float *sums) {
  const int64_t stride = d * 4;
  for (int i = 0; i < d; i += 4 * kLanes) {
    const bool four = d - i >= 4 * kLanes;  // else two
    if (chunk.is_first) {
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
    } else {
      _tile_loadd(0, sums + i, stride);
      _tile_loadd(1, sums + i + kLanes, stride);
      if (four) {
        _tile_loadd(2, sums + i + 2 * kLanes, stride);
        _tile_loadd(3, sums + i + 3 * kLanes, stride);
      }
    }
    for (int page = 0; page < chunk.num_pages; ++page) {
      const uint16_t *values = chunk.values[page] + i * 2;
      _tile_loadd(4, s.weights[page], 64);
      _tile_loadd(5, values, stride);
      _tile_dpbf16ps(0, 4, 5);
      _tile_loadd(6, values + 2 * kLanes, stride);
      _tile_dpbf16ps(1, 4, 6);
      if (four) {
        _tile_loadd(7, values + 4 * kLanes, stride);
        _tile_dpbf16ps(2, 4, 7);
        _tile_loadd(5, values + 6 * kLanes, stride);
        _tile_dpbf16ps(3, 4, 5);
      }
    }
    _tile_stored(0, sums + i, stride);
    _tile_stored(1, sums + i + kLanes, stride);
    if (four) {
      _tile_stored(2, sums + i + 2 * kLanes, stride);
      _tile_stored(3, sums + i + 3 * kLanes, stride);
    }
  }
}

template <bool kInt8>
inline void attend_chunk(Scratch &s, const Queries &rows, const Chunk &chunk, Progress &p, int d, float scale,
                         int64_t window) {
  settle();
  for (int page = 0; page < chunk.num_pages; ++page)
    score_page(rows, chunk, page, d, s.scores[page * 2]);
  const int pages = static_cast<int>(chunk.num_pages), end = rows.first + rows.count;
  const auto seen = [&](int r) {
    const int64_t high = rows.position + (r - rows.first) * rows.step + 1;
    return Seen(chunk, window > 0 && high > window ? high - window : 0, high);
  };
  for (int r = rows.first; r < end; ++r) {
    const float before = p.top[r];
    p.top[r] = highest<kInt8>(s, pages, r, scale, seen(r), before);
    p.fade[r] = _mm512_cvtss_f32(power2(set(before - p.top[r])));
  }
  for (int r = rows.first; r < end; ++r) {
    if (!chunk.is_first && p.fade[r] != 1.0f) {
      const __m512 fade = set(p.fade[r]);
      write(p.total[r], _mm512_mul_ps(read(p.total[r]), fade));
      for (int i = 0; i < d; i += kLanes) write(p.sums + r * d + i, _mm512_mul_ps(read(p.sums + r * d + i), fade));
    }
    weigh<kInt8>(s, pages, r, scale, seen(r), p.top[r], p.total[r]);
  }
  settle();
  add_values(s, chunk, d, p.sums);
}

}  // namespace
}  // namespace qk
