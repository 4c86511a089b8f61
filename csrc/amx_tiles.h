// Products of weights and packed activations in AMX tiles. Included behind the compiler's target.
//
// Weights (out, in) are read as they lie: a tile is 16 rows of 32 inputs. Activations of 16 tokens are packed
// (in / 2, token, in % 2) in bfloat16, so a tile is 1 KB in one piece. Every sum runs through the inputs in order,
// 32 at a time, in one float32 accumulator, whatever is computed beside it.
#pragma once
#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace qk {
namespace {

constexpr int kTile = 256;        // numbers in a tile of results: 16 outputs of 16 tokens
constexpr int kTileBytes = 1024;
constexpr int kDepth = 32;        // inputs that one tile product sums

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

// Two blocks of 16 weight rows each, anywhere.
struct Rows {
  const uint16_t *first = nullptr, *second = nullptr;

  Rows behind(int64_t numbers) const { return first ? Rows{first + numbers, second + numbers} : Rows{}; }
};

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

// `steps` times 32 of the rows' `inputs`, for one (S = 1) or two tiles of tokens. `ahead`, where not null, is what
// the cache is to fetch meanwhile: as much as is read here.
template <int S>
inline void multiply(Rows w, int64_t inputs, int64_t steps, const uint16_t *b0, const uint16_t *b1, const Sums &sums,
                     Rows ahead) {
  const int64_t stride = inputs * sizeof(uint16_t);
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
  for (int64_t k = 0; k < steps; ++k) {
    _tile_loadd(4, w.first + k * kDepth, stride);
    _tile_loadd(6, b0 + k * kDepth * 16, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(5, w.second + k * kDepth, stride);
    _tile_dpbf16ps(1, 5, 6);
    if (S == 2) {
      _tile_loadd(7, b1 + k * kDepth * 16, 64);
      _tile_dpbf16ps(2, 4, 7);
      _tile_dpbf16ps(3, 5, 7);
    }
    if (ahead.first) {
      fetch(ahead.first, k);
      fetch(ahead.second, k);
    }
  }
  _tile_stored(0, sums.to[0], 64);
  _tile_stored(1, sums.to[1], 64);
  if (S == 2) {
    _tile_stored(2, sums.to[2], 64);
    _tile_stored(3, sums.to[3], 64);
  }
}

constexpr int64_t kStepsAtOnce = 9;  // of weights and of two tiles of tokens, so that both stay in the first cache

// All inputs, for neighbouring tiles of tokens. to(tile) is where two tiles of results lie, one after the other. A sum
// that stops at a step and goes on later is the same: float32 in memory as in the tile.
template <class To>
inline void multiply_all(Rows w, int64_t inputs, const uint16_t *packed, int first, int end, bool add, Rows ahead,
                         const To &to) {
  const int64_t steps = inputs / kDepth, parts = end - first > 2 ? (steps + kStepsAtOnce - 1) / kStepsAtOnce : 1;
  const int64_t each = (steps + parts - 1) / parts;
  for (int64_t k = 0; k < steps; k += each) {
    const int64_t part = std::min(each, steps - k);
    Rows fetched = ahead.behind(k * kDepth * 16);
    for (int tile = first; tile < end; tile += 2) {
      const uint16_t *b0 = packed + (tile * steps + k) * kDepth * 16, *b1 = b0 + steps * kDepth * 16;
      Sums sums{{to(tile), to(tile) + kTile}, add || k > 0};
      if (tile + 1 < end) {
        sums.to[2] = to(tile + 1), sums.to[3] = sums.to[2] + kTile;
        multiply<2>(w.behind(k * kDepth), inputs, part, b0, b1, sums, fetched);
      } else {
        multiply<1>(w.behind(k * kDepth), inputs, part, b0, nullptr, sums, fetched);
      }
      fetched = {};
    }
  }
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
