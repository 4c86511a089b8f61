// The attention phases of amx_network.h: queries, keys and values of a tile of tokens, and what the queries see.
#pragma once
#include "amx_layers.h"

namespace qk {
namespace {

inline void Network::attention(const QkLayer &layer, int number, Own &own, int thread) {
  const uint16_t *packed = normalised(plan_.all, x_.get(), layer.attn_norm, own, thread);
  low_rank(plan_.all, number, 0, packed, m_.hidden, own, thread);
  heads(layer, number, packed, own, thread);
  pieces(static_cast<int>(plan_.groups.size()) * m_.kv_heads, [&](int i, int) {
    attend(layer, number, plan_.groups[i / m_.kv_heads], i % m_.kv_heads, own);
  }, own, thread);
  const Matrix out{layer.out, heads_, m_.hidden / (2 * kLanes), kLanes};
  add_residual(plan_.all, out, number, 1, attended_.get(), x_.get(), own, thread);
}

// Computes whole heads, so that each can be normed, turned and stored at once.
inline void Network::heads(const QkLayer &layer, int number, const uint16_t *packed, Own &own, int thread) {
  const int d = m_.head_dim, count = m_.heads + 2 * m_.kv_heads;
  const int tiles = plan_.all.count, group = together(m_.hidden);
  const Matrix w{layer.qkv, m_.hidden, count * d / (2 * kLanes), kLanes};
  const Inputs inputs = ordered(w, packed, tiles, own, thread);
  const int pairs = d / (2 * kLanes);
  if (tiles >= kMany && pairs <= kMostPairs)
    return pieces(count, [&](int head, int) {
      const auto to = [&](int pair, int tile) {
        return own.results.get() + size(tile % 2, d) + (pair - head * pairs) * 2 * kTile;
      };
      many_tiles(w, inputs, head * pairs, pairs, tiles, false, to, own, [&](int pair, int tile, int some) {
        if (pair + 1 < (head + 1) * pairs) return;
        for (int t = tile; t < tile + some; ++t) place(layer, number, head, t, to(head * pairs, t));
      });
    }, own, thread);
  pieces(count * ((tiles + group - 1) / group), [&](int piece, int next) {
    const int head = piece % count, first = piece / count * group, end = std::min(first + group, tiles);
    const auto result = [&](int tile) { return own.results.get() + size(tile - first, d); };
    for (int i = 0; i < pairs; ++i) {
      const int follows = i + 1 < pairs ? head * pairs + i + 1 : next < 0 ? -1 : next % count * pairs;
      const Pair now = w.pair(head * pairs + i), ahead = follows < 0 ? Pair{} : w.pair(follows);
      multiply_all(now, w.inputs, inputs.of(now), first, end, false, ahead, own.unpacked.get(),
                   [&](int tile) { return result(tile) + i * 2 * kTile; });
    }
    for (int tile = first; tile < end; ++tile) place(layer, number, head, tile, result(tile));
  }, own, thread);
}

// x (i, token) of one head, of query, key or value.
inline void Network::place(const QkLayer &layer, int number, int head, int tile, float *x) {
  const int d = m_.head_dim, half = m_.rotary / 2;
  const int64_t row = static_cast<int64_t>(head) * d;
  for (int i = 0; i < d; i += kLanes) add_low_rank(plan_.all, number, 0, tile, row + i, x + i * kLanes);
  add_bias(layer.qkv.bias, row, x, d);
  if (head >= m_.heads + m_.kv_heads) return place_values(number, head - m_.heads - m_.kv_heads, tile, x);
  const bool is_key = head >= m_.heads;
  if (const void *norm = is_key ? layer.k_norm : layer.q_norm)
    norm_lanes(x, at(norm), d, m_.eps, [&](int64_t i, __m512 even, __m512 odd) {
      write(x + i * kLanes, even);
      write(x + (i + 1) * kLanes, odd);
    });
  const float *cosines = cos_.get() + size(tile, m_.rotary), *sines = sin_.get() + size(tile, m_.rotary);
  for (int i = 0; i < half; ++i) {
    const int64_t low = i * kLanes, high = (i + half) * kLanes;
    const __m512 a = read(x + low), b = read(x + high);
    write(x + low, _mm512_fmadd_ps(b, read(sines + low), _mm512_mul_ps(a, read(cosines + low))));
    write(x + high, _mm512_fmadd_ps(a, read(sines + high), _mm512_mul_ps(b, read(cosines + high))));
  }
  if (!is_key) return place_query(head, tile, x);
  const Levels l = f_.pool->int8 ? levels(x, d) : Levels{};
  for (const Run &run : plan_.runs[tile])
    place_key(page_block(*f_.pool, m_, run.page, number, head - m_.heads), run, x, l);
}

inline void Network::place_key(const PageBlock &block, const Run &run, const float *x, const Levels &l) const {
  if (f_.pool->int8) store_key_bytes(block, run, x, m_.head_dim, l);
  else store_keys(block, run, x, m_.head_dim);
}

inline void Network::place_query(int head, int tile, const float *x) {
  alignas(64) float scales[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) {
    const int token = tile * kLanes + lane;
    const QkSpan *span = plan_.all.spans[token];
    scales[lane] = span && span->query_scale ? span->query_scale[plan_.offsets[token]] : 1.0f;
  }
  const __m512 scale = read(scales);
  uint16_t *to = queries_.get() + tile * kLanes * heads_ + static_cast<int64_t>(head) * m_.head_dim;
  for (int i = 0; i < m_.head_dim; i += kDepth) {
    __m512i rows[kLanes];
    for (int k = 0; k < kLanes; ++k) {
      const float *from = x + (i + 2 * k) * kLanes;
      rows[k] = pair(_mm512_mul_ps(read(from), scale), _mm512_mul_ps(read(from + kLanes), scale));
    }
    transpose(rows);
    for (int lane = 0; lane < kLanes; ++lane) write(to + lane * heads_ + i, rows[lane]);
  }
}

inline void Network::place_values(int number, int kv_head, int tile, const float *x) const {
  const int d = m_.head_dim;
  const Levels l = f_.pool->int8 ? levels(x, d) : Levels{};
  for (int i = 0; i < d; i += kLanes) {
    __m512i rows[kLanes];
    __m128i bytes[kLanes];
    for (int k = 0; k < kLanes; ++k) {
      const __m512 v = read(x + (i + k) * kLanes);
      rows[k] = f_.pool->int8 ? _mm512_cvtepu8_epi32(to_bytes(v, l)) : _mm512_castps_si512(v);
    }
    transpose(rows);
    for (int k = 0; k < kLanes; ++k) bytes[k] = _mm512_cvtepi32_epi8(rows[k]);
    for (const Run &run : plan_.runs[tile]) {
      const PageBlock block = page_block(*f_.pool, m_, run.page, number, kv_head);
      if (f_.pool->int8) store_value_bytes(block, run, bytes, i, d);
      else store_values(block, run, rows, i, d);
    }
  }
  if (f_.pool->int8)
    for (const Run &run : plan_.runs[tile]) {
      const PageBlock block = page_block(*f_.pool, m_, run.page, number, kv_head);
      store_levels(block.value_scale, block.value_zero, run, l);
    }
}

// Where the pages of a chunk lie; int8 ones are expanded first.
template <bool kInt8>
inline void Network::read_chunk(int number, const Group &group, int kv_head, Chunk &chunk, Own &own) const {
  const int d = m_.head_dim;
  for (int p = 0; p < chunk.num_pages; ++p) {
    const PageBlock block = page_block(*f_.pool, m_, group.span->pages[chunk.first_page + p], number, kv_head);
    chunk.keys[p] = at(block.keys), chunk.values[p] = at(block.values);
    if (!kInt8) continue;
    uint16_t *keys = own.keys.get() + p * QK_PAGE * d, *values = own.values.get() + p * QK_PAGE * d;
    expand_keys(block, d, keys);
    expand_values(block, d, values);
    chunk.keys[p] = keys, chunk.values[p] = values;
    for (int t = 0; t < QK_PAGE; ++t) {
      own.scratch.key_scale[p * QK_PAGE + t] = widen(block.key_scale[t]);
      own.scratch.value_scale[p * QK_PAGE + t] = widen(block.value_scale[t]);
    }
  }
}

inline void Network::attend(const QkLayer &layer, int number, const Group &group, int kv_head, Own &own) {
  const int d = m_.head_dim, per = m_.heads / m_.kv_heads, first_head = kv_head * per;
  const int passes = group.by_token ? (per + kLanes - 1) / kLanes : per;
  const int64_t token = static_cast<int64_t>(group.tile) * kLanes;
  const auto queries = [&](int pass) {
    if (group.by_token)
      return Queries{queries_.get() + (token + group.lane) * heads_ + (first_head + pass * kLanes) * d, d, 0,
                     std::min(per - pass * kLanes, kLanes), group.position, 0};
    return Queries{queries_.get() + token * heads_ + (first_head + pass) * d, heads_, group.lane, group.count,
                   group.position, 1};
  };
  for (int pass = 0; pass < passes; ++pass) {
    own.progress[pass].sums = own.sums.get() + static_cast<int64_t>(pass) * kLanes * d;
    own.progress[pass].start(queries(pass));
  }
  const float scale = kLog2e / std::sqrt(static_cast<float>(d));
  const int64_t seen = group.position + 1, lowest = layer.window > 0 && seen > layer.window ? seen - layer.window : 0;
  const int64_t first = lowest / QK_PAGE, end = (group.position + group.count - 1) / QK_PAGE + 1;
  for (int64_t page = first; page < end;) {
    Chunk chunk{page, std::min(end, (page / kChunkPages + 1) * kChunkPages) - page, page == first, false};
    if (f_.pool->int8) read_chunk<true>(number, group, kv_head, chunk, own);
    else read_chunk<false>(number, group, kv_head, chunk, own);
    const auto attend_with = f_.pool->int8 ? attend_chunk<true> : attend_chunk<false>;
    for (int pass = 0; pass < passes; ++pass) {
      chunk.fetches = pass == 0 && !f_.pool->int8;
      attend_with(own.scratch, queries(pass), chunk, own.progress[pass], d, scale, layer.window);
    }
    page += chunk.num_pages;
  }
  for (int pass = 0; pass < passes; ++pass) {
    const Progress &p = own.progress[pass];
    const int done = pass * kLanes;
    if (group.by_token) finish_heads(group, first_head + done, std::min(per - done, kLanes), p);
    else finish_tokens(group, first_head + pass, p);
  }
}

// Sums / total of one query, in pairs, from i on.
inline __m512i attended_pairs(const Progress &p, int row, int d, int i) {
  const __m512 inverse = set(1.0f / _mm512_reduce_add_ps(read(p.total[row])));
  const float *sums = p.sums + static_cast<int64_t>(row) * d + i;
  return narrow(_mm512_mul_ps(read(sums), inverse), _mm512_mul_ps(read(sums + kLanes), inverse));
}

// One head of several tokens, in rows numbered like lanes.
inline void Network::finish_tokens(const Group &group, int head, const Progress &p) {
  const int d = m_.head_dim;
  const __mmask16 lanes = lane_mask(group.lane, group.count);
  uint16_t *to = attended_.get() + size(group.tile, heads_) + static_cast<int64_t>(head) * d * kLanes;
  for (int i = 0; i < d; i += kDepth) {
    __m512i rows[kLanes];
    for (int r = 0; r < kLanes; ++r) rows[r] = lanes >> r & 1 ? attended_pairs(p, r, d, i) : _mm512_setzero_si512();
    transpose(rows);
    for (int k = 0; k < kLanes; ++k) _mm512_mask_storeu_epi32(to + (i + 2 * k) * kLanes, lanes, rows[k]);
  }
}

// Several heads of one token.
inline void Network::finish_heads(const Group &group, int head, int count, const Progress &p) {
  const int d = m_.head_dim;
  const __m512i apart = _mm512_mullo_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                                           _mm512_set1_epi32(kLanes));
  for (int r = 0; r < count; ++r)
    for (int i = 0; i < d; i += kDepth) {
      uint16_t *to = attended_.get() + size(group.tile, heads_) + (static_cast<int64_t>(head + r) * d + i) * kLanes;
      _mm512_i32scatter_epi32(to + group.lane * 2, apart, attended_pairs(p, r, d, i), 4);
    }
}

}  // namespace
}  // namespace qk
