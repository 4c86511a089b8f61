// Products of weights and packed activations in AMX tiles. Included behind the compiler's target.
//
// Weights come from amx_weights.h: a tile is 16 rows of 32 inputs. Activations of 16 tokens are packed
// (in / 2, token, in % 2) in bfloat16, so a tile is 1 KB in one piece. Every sum runs through the inputs in order,
// 32 at a time, in one float32 accumulator, whatever is computed beside it.
#pragma once
#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "amx_weights.h"

namespace qk {
namespace {

constexpr int kTile = 256;  // numbers in a tile of results: 16 outputs of 16 tokens

// All tiles have 16 rows of 64 bytes.
inline void configure_tiles() {
  struct alignas(64) {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t columns[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } config;
  _tile_loadconfig(&config);
}

// What the compiler holds in registers must be in memory before a tile is loaded: it does not see what that reads.
inline void settle() { __asm__ volatile("" ::: "memory"); }

// Where tiles of results go, in the order (first rows, first tokens), (second rows, first tokens), (first rows, second
// tokens), (second rows, second tokens); they are added to what is there or take its place.
struct Sums {
  float *to[4];
  bool add;
};

inline void fetch(const uint16_t *p, int64_t step) {
  const char *line = reinterpret_cast<const char *>(p) + step * kTileBytes;
  for (int i = 0; i < 16; ++i) _mm_prefetch(line + i * 64, _MM_HINT_T1);
}

template <int S>
inline void load_sums(const Sums &sums) {
  settle();
  if (sums.add) {
    _tile_loadd(0, sums.to[0], 64);
    _tile_loadd(1, sums.to[1], 64);
    if (S == 2) {
      _tile_loadd(2, sums.to[2], 64);
      _tile_loadd(3, sums.to[3], 64);
    }
  } else {
    _tile_zero(0);
    _tile_zero(1);
    if (S == 2) {
      _tile_zero(2);
      _tile_zero(3);
    }
  }
}

template <int S>
inline void store_sums(const Sums &sums) {
  _tile_stored(0, sums.to[0], 64);
  _tile_stored(1, sums.to[1], 64);
  if (S == 2) {
    _tile_stored(2, sums.to[2], 64);
    _tile_stored(3, sums.to[3], 64);
  }
}

// Two tiles of weights times one or two of tokens.
template <int S>
inline void multiply_step(const uint16_t *first, const uint16_t *second, int64_t stride, const uint16_t *b0,
                          const uint16_t *b1) {
  _tile_loadd(4, first, stride);
  _tile_loadd(6, b0, 64);
  _tile_dpbf16ps(0, 4, 6);
  _tile_loadd(5, second, stride);
  _tile_dpbf16ps(1, 5, 6);
  if (S == 2) {
    _tile_loadd(7, b1, 64);
    _tile_dpbf16ps(2, 4, 7);
    _tile_dpbf16ps(3, 5, 7);
  }
}

// `steps` times 32 of the rows' inputs, for one (S = 1) or two tiles of tokens. `ahead`, where not null, is what
// the cache is to fetch meanwhile: as much as is read here.
template <int S>
inline void multiply(const Rows &w, int64_t steps, const uint16_t *b0, const uint16_t *b1, const Sums &sums,
                     const Rows &ahead) {
  load_sums<S>(sums);
  for (int64_t k = 0; k < steps; ++k) {
    const int64_t at = k * kDepth * 16;
    multiply_step<S>(w.first + k * w.step, w.second + k * w.step, w.stride, b0 + at, b1 + at);
    if (ahead.first) {
      fetch(ahead.first, k);
      fetch(ahead.second, k);
    }
  }
  store_sums<S>(sums);
}

// All inputs of rows that must be unpacked, for one or two tiles of tokens. Each step is unpacked while the one before
// it is multiplied: tiles are loaded from memory, which has to have arrived there.
template <int S>
inline void multiply_unpacked(const Pair &w, int64_t inputs, const uint16_t *b0, const uint16_t *b1, const Sums &sums,
                              const Pair &ahead, uint16_t *room) {
  constexpr int64_t kSlots = 4;
  const int64_t steps = inputs / kDepth;
  const uint16_t *before = nullptr;
  const auto multiply_before = [&](int64_t k) {
    const int64_t at = k * kDepth * 16;
    settle();
    multiply_step<S>(before, before + kTileNumbers, kDepth * 2, b0 + at, b1 + at);
  };
  clear_absent(w, kSlots, room);
  load_sums<S>(sums);
  for (int64_t k = 0; k < steps; k += kStepsAtOnce)
    unpack(w, inputs, k, std::min(kStepsAtOnce, steps - k), ahead, room, kSlots, [&](int64_t step, const uint16_t *now) {
      if (before) multiply_before(step - 1);
      before = now;
    });
  multiply_before(steps - 1);
  store_sums<S>(sums);
}

// All inputs, for neighbouring tiles of tokens. to(tile) is where two tiles of results lie, one after the other. A sum
// that stops at a step and goes on later is the same: float32 in memory as in the tile. `ahead` may be nothing; `room`
// is for kUnpacked numbers.
template <class To>
inline void multiply_all(const Pair &w, int64_t inputs, const uint16_t *packed, int first, int end, bool add,
                         const Pair &ahead, uint16_t *room, const To &to) {
  const bool plain = w.is_plain(), fetches = plain && ahead.is_there() && ahead.is_plain();
  const int64_t steps = inputs / kDepth;
  const auto sums = [&](int tile, bool adds) {
    Sums out{{to(tile), to(tile) + kTile}, adds};
    if (tile + 1 < end) out.to[2] = to(tile + 1), out.to[3] = out.to[2] + kTile;
    return out;
  };
  if (!plain && end - first <= 2) {
    const uint16_t *b0 = packed + first * steps * kDepth * 16, *b1 = b0 + steps * kDepth * 16;
    if (end - first == 2) return multiply_unpacked<2>(w, inputs, b0, b1, sums(first, add), ahead, room);
    return multiply_unpacked<1>(w, inputs, b0, b0, sums(first, add), ahead, room);
  }
  const Rows whole = plain ? plain_rows(w, inputs) : Rows{}, next = fetches ? plain_rows(ahead, inputs) : Rows{};
  const int64_t parts = end - first > 2 ? (steps + kStepsAtOnce - 1) / kStepsAtOnce : 1;
  const int64_t each = (steps + parts - 1) / parts;
  if (!plain) clear_absent(w, each, room);
  for (int64_t k = 0; k < steps; k += each) {
    const int64_t part = std::min(each, steps - k);
    Rows rows = whole.behind(k * kDepth), fetched = next.behind(k * kDepth * 16);
    if (!plain) {
      unpack(w, inputs, k, part, ahead, room, each, [](int64_t, const uint16_t *) {});
      rows = {room, room + kTileNumbers, kDepth * 2, 2 * kTileNumbers};
    }
    for (int tile = first; tile < end; tile += 2) {
      const uint16_t *b0 = packed + (tile * steps + k) * kDepth * 16, *b1 = b0 + steps * kDepth * 16;
      if (tile + 1 < end) multiply<2>(rows, part, b0, b1, sums(tile, add || k > 0), fetched);
      else multiply<1>(rows, part, b0, b0, sums(tile, add || k > 0), fetched);
      fetched = {};
    }
  }
}

// A whole pair as tiles want it: where it lies, or unpacked in `room`, which is for 32 rows of bfloat16.
inline Rows whole_rows(const Pair &w, int64_t inputs, uint16_t *room) {
  if (w.is_plain()) return plain_rows(w, inputs);
  const int64_t steps = inputs / kDepth;
  clear_absent(w, steps, room);
  for (int64_t k = 0; k < steps; k += kStepsAtOnce)
    unpack(w, inputs, k, std::min(kStepsAtOnce, steps - k), {}, room, steps, [](int64_t, const uint16_t *) {});
  return {room, room + kTileNumbers, kDepth * 2, 2 * kTileNumbers};
}

// All inputs of a pair for one or two neighbouring tiles of tokens from `packed` on.
inline void multiply_tiles(const Rows &w, int64_t inputs, const uint16_t *packed, int count, const Sums &sums,
                           const Rows &ahead) {
  const int64_t steps = inputs / kDepth;
  if (count == 2) return multiply<2>(w, steps, packed, packed + steps * kDepth * 16, sums, ahead);
  multiply<1>(w, steps, packed, packed, sums, ahead);
}

// c (16, 16) += b (16 rows of `rank`) times t, packed, of rank rounded up to whole tiles.
inline void multiply_low_rank(const uint16_t *b, int64_t rank, const uint16_t *t, float *c) {
  alignas(64) uint16_t rows[16 * kDepth];
  settle();
  _tile_loadd(0, c, 64);
  for (int64_t k = 0; k < rank; k += kDepth) {
    const int64_t width = rank - k < kDepth ? rank - k : kDepth;
    std::memset(rows, 0, sizeof rows);
    for (int r = 0; r < 16; ++r) std::memcpy(rows + r * kDepth, b + r * rank + k, width * sizeof *rows);
    settle();
    _tile_loadd(4, rows, 64);
    _tile_loadd(6, t + k * 16, 64);
    _tile_dpbf16ps(0, 4, 6);
  }
  _tile_stored(0, c, 64);
}

}  // namespace
}  // namespace qk
