// The phases of amx_network.h apart from attention: norms, products, low-rank parts, embedding and logits.
#pragma once
#include "amx_network.h"

namespace qk {
namespace {

inline const uint16_t *Network::embedding(const QkSpan &span, int64_t token, Own &own) const {
  if (span.adapter && span.adapter->embed) return at(span.adapter->embed) + token * m_.hidden;
  const QkMatrix &table = m_.embed;
  if (table.format == QK_DENSE || table.format == QK_BRAIN) return at(table.data) + token * m_.hidden;
  for (int64_t k = 0, steps = m_.hidden / kDepth; k < steps; k += kStepsAtOnce) {
    const int64_t part = std::min(kStepsAtOnce, steps - k);
    Unpacker row(table, token, 1, Strip(table, m_.hidden, k, part));
    for (int64_t i = k; i < k + part; ++i) row.step(own.row.get() + i * kDepth);
  }
  return own.row.get();
}

// Inputs in the orders of a layer's parts: what is input order[j] becomes number j.
inline Network::Inputs Network::ordered(const Matrix &w, const uint16_t *packed, int tiles, Own &own, int thread) {
  const QkLinear &l = w.linear;
  const Inputs inputs{l, packed, ordered_.get(), size(tiles, w.inputs)};
  if (!has_order(l)) return inputs;
  const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000));
  pieces(l.parts * tiles, [&](int number, int) {
    const QkMatrix &part = l.part[number / tiles];
    if (!part.order || first_alike(l, part) != number / tiles) return;
    const uint16_t *from = packed + size(number % tiles, w.inputs);
    uint16_t *to = ordered_.get() + size(number, w.inputs);
    const auto read_pair = [&](int32_t i) { return _mm512_loadu_si512(from + i / 2 * kDepth); };
    for (int64_t j = 0; j < w.inputs; j += 2) {
      const int32_t a = part.order[j], b = part.order[j + 1];
      const __m512i even = a % 2 ? _mm512_srli_epi32(read_pair(a), 16) : _mm512_andnot_si512(upper, read_pair(a));
      const __m512i odd = b % 2 ? _mm512_and_si512(read_pair(b), upper) : _mm512_slli_epi32(read_pair(b), 16);
      write(to + j * kLanes, _mm512_or_si512(even, odd));
    }
  }, own, thread);
  return inputs;
}

// The tokens' embeddings and angles, token by lane.
inline void Network::embed(int tile, Own &own) {
  float *x = x_.get() + size(tile, m_.hidden);
  float *cosines = cos_.get() + size(tile, m_.rotary), *sines = sin_.get() + size(tile, m_.rotary);
  for (int lane = 0; lane < kLanes; ++lane) {
    const int token = tile * kLanes + lane;
    const QkSpan *span = plan_.all.spans[token];
    if (!span) {
      for (int64_t i = 0; i < m_.hidden; ++i) x[i * kLanes + lane] = 0.0f;
      for (int64_t i = 0; i < m_.rotary; ++i) cosines[i * kLanes + lane] = sines[i * kLanes + lane] = 0.0f;
      continue;
    }
    const uint16_t *row = embedding(*span, f_.tokens[token], own);
    for (int64_t i = 0; i < m_.hidden; ++i) x[i * kLanes + lane] = widen(row[i]);
    const int64_t angles = plan_.offsets[token] * m_.rotary;
    for (int64_t i = 0; i < m_.rotary; ++i) {
      cosines[i * kLanes + lane] = span->cos[angles + i];
      sines[i * kLanes + lane] = span->sin[angles + i];
    }
  }
}

// The wanted tokens side by side.
inline void Network::gather(int tile) {
  float *to = wanted_x_.get() + size(tile, m_.hidden);
  for (int lane = 0; lane < kLanes; ++lane) {
    const int row = tile * kLanes + lane;
    const int64_t token = row < f_.num_rows ? f_.rows[row] : -1;
    const float *from = x_.get() + (token < 0 ? 0 : size(token / kLanes, m_.hidden) + token % kLanes);
    for (int64_t i = 0; i < m_.hidden; ++i) to[i * kLanes + lane] = token < 0 ? 0.0f : from[i * kLanes];
  }
}

inline void pack_normed(const float *x, const void *weight, int64_t n, float eps, uint16_t *out) {
  norm_lanes(x, static_cast<const uint16_t *>(weight), n, eps,
             [&](int64_t i, __m512 even, __m512 odd) { write(out + i * kLanes, pair(even, odd)); });
}

// Few tiles are normed by every thread for itself: cheaper than another meeting.
inline const uint16_t *Network::normalised(const Tiles &tiles, const float *x, const void *weight, Own &own,
                                           int thread) {
  const int64_t step = size(1, m_.hidden);
  if (tiles.count <= Own::kOwnTiles) {
    for (int t = 0; t < tiles.count; ++t)
      pack_normed(x + t * step, weight, m_.hidden, m_.eps, own.normed.get() + t * step);
    return own.normed.get();
  }
  pieces(tiles.count, [&](int t, int) {
    pack_normed(x + t * step, weight, m_.hidden, m_.eps, normed_.get() + t * step);
  }, own, thread);
  return normed_.get();
}

// The adapters' a x for the lanes that have them, zero in the others.
inline void Network::low_rank(const Tiles &tiles, int layer, int part, const uint16_t *packed, int64_t inputs, Own &own,
                              int thread) {
  if (tiles.low_rank.empty()) return;
  pieces(static_cast<int>(tiles.low_rank.size()), [&](int number, int) {
    const LowRank &l = tiles.low_rank[number];
    const QkLora &lora = l.adapter->lora[layer * 4 + part];
    float *c = own.results.get();
    const QkMatrix a{QK_DENSE, lora.rank, 0, lora.a};
    for (int64_t r = 0; r < lora.rank; r += kDepth) {
      multiply_all({{&a, r}, {&a, r + kLanes}}, inputs, packed, l.tile, l.tile + 1, false, {}, own.unpacked.get(),
                   [&](int) { return c; });
      for (int i = 0; i < kDepth; i += 2)
        write(low_rank_.get() + l.t + (r + i) * kLanes,
              _mm512_maskz_mov_epi32(l.lanes, pair(read(c + i * kLanes), read(c + (i + 1) * kLanes))));
    }
  }, own, thread);
}

// c, 16 rows of results from `row` on, += b (a x).
inline void Network::add_low_rank(const Tiles &tiles, int layer, int part, int tile, int64_t row, float *c) const {
  for (const LowRank &l : tiles.low_rank) {
    const QkLora &lora = l.adapter->lora[layer * 4 + part];
    if (l.tile == tile && lora.rank > 0)
      multiply_low_rank(at(lora.b) + row * lora.rank, lora.rank, low_rank_.get() + l.t, c);
  }
}

inline void add_bias(const void *bias, int64_t row, float *c, int count) {
  if (!bias) return;
  const uint16_t *numbers = static_cast<const uint16_t *>(bias) + row;
  for (int i = 0; i < count; ++i) write(c + i * kLanes, _mm512_add_ps(read(c + i * kLanes), set(widen(numbers[i]))));
}

// x += w times the packed inputs: the residual stream is where the sums start.
inline void Network::add_residual(const Tiles &tiles, const Matrix &w, int layer, int part, const uint16_t *packed,
                                  float *x, Own &own, int thread) {
  low_rank(tiles, layer, part, packed, w.inputs, own, thread);
  product(w, packed, tiles.count, true, [&](int pair, int tile) {
    return x + size(tile, m_.hidden) + pair * 2 * kTile;
  }, [&](int pair, int tile, float *c) {
    add_low_rank(tiles, layer, part, tile, pair * 2 * kLanes, c);
    add_low_rank(tiles, layer, part, tile, (pair * 2 + 1) * kLanes, c + kTile);
    add_bias(w.linear.bias, pair * 2 * kLanes, c, 2 * kLanes);
  }, own, thread);
}

inline void Network::feed_forward(const QkLayer &layer, int number, const Tiles &tiles, float *x, Own &own,
                                  int thread) {
  const uint16_t *packed = normalised(tiles, x, layer.ffn_norm, own, thread);
  low_rank(tiles, number, 2, packed, m_.hidden, own, thread);
  const Matrix gate_up{layer.gate_up, m_.hidden, m_.ffn / kLanes, m_.ffn};
  product(gate_up, packed, tiles.count, false, [&](int, int tile) { return own.result(tile); },
          [&](int block, int tile, float *gate) {
    float *up = gate + kTile;
    const int64_t row = block * kLanes;
    add_low_rank(tiles, number, 2, tile, row, gate);
    add_low_rank(tiles, number, 2, tile, m_.ffn + row, up);
    add_bias(layer.gate_up.bias, row, gate, kLanes);
    add_bias(layer.gate_up.bias, m_.ffn + row, up, kLanes);
    uint16_t *to = inner_.get() + size(tile, m_.ffn) + block * kTile;
    for (int i = 0; i < kTile; i += 2 * kLanes) {
      const __m512 even = _mm512_mul_ps(silu(read(gate + i)), read(up + i));
      const __m512 odd = _mm512_mul_ps(silu(read(gate + i + kLanes)), read(up + i + kLanes));
      write(to + i, pair(even, odd));
    }
  }, own, thread);
  const Matrix down{layer.down, m_.ffn, m_.hidden / (2 * kLanes), kLanes};
  add_residual(tiles, down, number, 3, inner_.get(), x, own, thread);
}

inline void Network::output(const float *x, Own &own, int thread) {
  const Tiles &tiles = plan_.wanted;
  if (f_.hidden) return pieces(tiles.count, [&](int tile, int) { write_hidden(x, tile); }, own, thread);
  const uint16_t *packed = normalised(tiles, x, m_.norm, own, thread);
  for (const void *table : plan_.heads)
    head(table == m_.head.data ? m_.head : QkMatrix{QK_DENSE, m_.vocab, 0, table}, packed, own, thread);
}

// Logits of the rows whose output table is this one.
inline void Network::head(const QkMatrix &table, const uint16_t *packed, Own &own, int thread) {
  const QkLinear linear = alone(table);
  const Matrix w{linear, m_.hidden, (m_.vocab + 2 * kLanes - 1) / (2 * kLanes), kLanes};
  const auto to = [&](int, int tile) { return own.result(tile); };
  const auto finish = [&](int pair, int tile, const float *c) {
    write_logits(pair, tile, plan_.wanted.lanes_with(tile, table.data, &QkAdapter::head, m_.head.data), c);
  };
  product(w, packed, plan_.wanted.count, false, to, finish, own, thread);
}

// c: 32 rows of results, of which a last pair may have fewer.
inline void Network::write_logits(int pair, int tile, uint16_t lanes, const float *c) const {
  for (int half = 0; half < 2; ++half) {
    const int64_t first = (pair * 2 + half) * kLanes;
    if (first >= m_.vocab) return;
    const uint16_t there = lane_mask(0, static_cast<int>(std::min<int64_t>(m_.vocab - first, kLanes)));
    __m512i rows[kLanes];
    for (int i = 0; i < kLanes; ++i) rows[i] = _mm512_castps_si512(read(c + half * kTile + i * kLanes));
    transpose(rows);
    float *out = f_.out + static_cast<int64_t>(tile) * kLanes * m_.vocab + first;
    for (int i = 0; i < kLanes; ++i)
      if (lanes >> i & 1) _mm512_mask_storeu_epi32(out + i * m_.vocab, there, rows[i]);
  }
}

inline void Network::write_hidden(const float *x, int tile) const {
  norm_lanes(x + size(tile, m_.hidden), at(m_.norm), m_.hidden, m_.eps, [&](int64_t i, __m512 even, __m512 odd) {
    alignas(64) float both[2][kLanes];
    write(both[0], even), write(both[1], odd);
    for (int lane = 0; lane < kLanes && tile * kLanes + lane < f_.num_rows; ++lane) {
      float *out = f_.out + (static_cast<int64_t>(tile) * kLanes + lane) * m_.hidden + i;
      out[0] = both[0][lane], out[1] = both[1][lane];
    }
  });
}

}  // namespace
}  // namespace qk
