// Products with 8-bit activations on AMX tiles, sixteen tokens at a time.
#if defined(__x86_64__)
#include "int8.h"

#if defined(__linux__) && defined(__has_include)
#if __has_include(<amxint8intrin.h>)
#define QK_HAS_AMX_INT8 1
#endif
#endif

#if !QK_HAS_AMX_INT8
bool qk::int8_tiles_available() { return false; }
namespace qk {
const Int8Kernels kInt8Amx = kInt8Portable;
}
#else
#include <cpuid.h>
#include <immintrin.h>

#include "amx.h"

bool qk::int8_tiles_available() {
  unsigned a, b, c, d;
  constexpr unsigned int8 = 1u << 25;
  static const bool there = vnni_available() && amx_available() && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & int8);
  return there;
}

// From here on only: inline functions of the standard headers above must stay runnable on every CPU.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c,amx-tile,amx-int8"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c,amx-tile,amx-int8")
#endif

#include "int8_vnni.h"

namespace qk {
namespace {

constexpr int kTokens = 16;     // of a tile
constexpr int64_t kDeepest = 64;  // inputs of a tile
constexpr int kFewest = 12;     // tokens for which a tile is worth it
constexpr int64_t kAhead = 4096;  // bytes of codes that are fetched before they are needed
constexpr int kRing = 8;        // units that are unpacked in turn
constexpr int kInFlight = 4;    // units whose tiles are computed while another is scaled

// Tiles 0 to 3 are results, 4 and 5 activations, 6 and 7 weights.
inline void configure(int64_t depth) {
  struct alignas(64) {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t columns[16] = {};
    uint8_t rows[16] = {};
  } config;
  for (int tile = 0; tile < 4; ++tile) config.columns[tile] = 64, config.rows[tile] = 16;
  for (const int tile : {4, 5}) config.columns[tile] = static_cast<uint16_t>(depth), config.rows[tile] = 16;
  for (const int tile : {6, 7}) config.columns[tile] = 64, config.rows[tile] = static_cast<uint8_t>(depth / 4);
  _tile_loadconfig(&config);
}

inline void settle() { __asm__ volatile("" ::: "memory"); }

// Whether the bytes of unpacked weights are signed: the code less its zero, unless it has none or does not fit.
inline bool is_signed(const QkMatrix &m) { return !m.mins && (m.format == QK_PANEL4 || !m.zeros); }

// Some inputs of a panel as tiles want them, (inputs / 4, row, 4), in whole tiles of `depth` inputs, of which the end may
// be zero.
inline void unpack(const QkMatrix &m, const Panel &panel, int64_t first, int64_t count, int64_t depth, int64_t group,
                   uint8_t *to) {
  const auto fetch = [](const uint8_t *p) { _mm_prefetch(reinterpret_cast<const char *>(p) + kAhead, _MM_HINT_T0); };
  const bool four = m.format == QK_PANEL4;
  const uint8_t *from = panel.codes + first * (four ? 8 : 16), *const end = from + count * (four ? 8 : 16);
  if (!four) {
    const __m512i middle = _mm512_set1_epi8(is_signed(m) ? -128 : 0);
    for (; from < end; from += 64, to += 64) {
      fetch(from);
      _mm512_storeu_si512(to, _mm512_xor_si512(_mm512_loadu_si512(from), middle));
    }
  } else {
    const __m512i low = _mm512_set1_epi8(15);
    __m512i zero = _mm512_set1_epi8(is_signed(m) ? 8 : 0);
    if (panel.zeros)
      zero = _mm512_mullo_epi32(int8_vnni::bytes(panel.zeros + group * kPanel), _mm512_set1_epi32(0x01010101));
    for (; from < end; to += 512)
      for (int j = 0; j < 4; ++j, from += 64) {
        fetch(from);
        const __m512i raw = _mm512_loadu_si512(from);
        _mm512_storeu_si512(to + j * 64, _mm512_sub_epi8(_mm512_and_si512(raw, low), zero));
        _mm512_storeu_si512(to + 256 + j * 64, _mm512_sub_epi8(_mm512_and_si512(_mm512_srli_epi16(raw, 4), low), zero));
      }
  }
  if (count % depth) std::memset(to, 0, 512);
}

// The integers of one unit, (token, row), by way of tile C: its number must be written out. Units take turns with tiles,
// so that one can begin while others end.
#define QK_UNIT(C, A, B)                              \
  _tile_zero(C);                                      \
  for (int64_t i = 0; i < inputs; i += depth) {       \
    _tile_loadd(A, x + i, stride);                    \
    _tile_loadd(B, weights + i * kPanel, 64);         \
    if (kSigned) _tile_dpbssd(C, A, B);               \
    else _tile_dpbsud(C, A, B);                       \
  }                                                   \
  _tile_stored(C, to, 64);

template <bool kSigned, int kTile>
__attribute__((always_inline)) inline void multiply(const int8_t *x, int64_t stride, const uint8_t *weights, int64_t inputs,
                                                    int64_t depth, int32_t *to) {
  if constexpr (kTile == 0) { QK_UNIT(0, 4, 6) }
  if constexpr (kTile == 1) { QK_UNIT(1, 5, 7) }
  if constexpr (kTile == 2) { QK_UNIT(2, 4, 6) }
  if constexpr (kTile == 3) { QK_UNIT(3, 5, 7) }
}

#undef QK_UNIT

// Sums of sixteen tokens and what they are made of.
template <bool kSigned>
struct Tile {
  const QkMatrix &m;
  const Panel &panel;
  uint8_t *weights;      // unpacked, or room for them
  bool unpacks, is_ring;  // whether they are still to be unpacked, and whether the room is for a few units in turn
  int64_t n, depth;
  int64_t units_of_group;  // a division would take as long as a tile
  const Int8Rows &x;  // of these tokens
  int32_t (*integers)[kTokens * kPanel];

  int64_t inputs_of(int64_t u) const { return std::min(x.unit, n - u * x.unit); }
  uint8_t *place_of(int64_t u) const { return weights + (is_ring ? u % kRing : u) * x.unit * kPanel; }

  void unpack_unit(int64_t u) const {
    if (u < x.units) unpack(m, panel, u * x.unit, inputs_of(u), depth, group_of(u), place_of(u));
  }

  // A unit is unpacked while the one before it is multiplied: tiles are loaded from memory, which has to have arrived.
  template <int kPlace>
  __attribute__((always_inline)) void begin(int64_t u) const {
    if (u >= x.units) return;
    if (unpacks) unpack_unit(u + 1);
    multiply<kSigned, kPlace>(x.codes + u * x.unit, x.stride, place_of(u), inputs_of(u), depth, integers[kPlace]);
  }

  template <int kPlace>
  __attribute__((always_inline)) void step(int64_t u, __m512 *sums) const {
    if (u >= x.units) return;
    begin<(kPlace + kInFlight - 1) % kInFlight>(u + kInFlight - 1);
    settle();
    const int64_t at = group_of(u) * kPanel;
    const int32_t *now = integers[kPlace], *inputs = x.sums + u;
    const float *scales = x.scales + u;
    const __m512 scale = int8_vnni::halves(panel.scales + at);
    if (!kSigned && panel.zeros) {
      const __m512i zeros = int8_vnni::bytes(panel.zeros + at);
#pragma GCC unroll 16
      for (int r = 0; r < kTokens; ++r) {
        const __m512i rest = _mm512_mullo_epi32(zeros, _mm512_set1_epi32(inputs[r * x.units]));
        const __m512 exact = _mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_load_si512(now + r * kPanel), rest));
        sums[r] = _mm512_fmadd_ps(exact, _mm512_mul_ps(scale, _mm512_set1_ps(scales[r * x.units])), sums[r]);
      }
      return;
    }
#pragma GCC unroll 16
    for (int r = 0; r < kTokens; ++r) {
      const __m512 exact = _mm512_cvtepi32_ps(_mm512_load_si512(now + r * kPanel));
      sums[r] = _mm512_fmadd_ps(exact, _mm512_mul_ps(scale, _mm512_set1_ps(scales[r * x.units])), sums[r]);
    }
    if (kSigned || !panel.mins) return;
    const __m512 least = int8_vnni::halves(panel.mins + at);
#pragma GCC unroll 16
    for (int r = 0; r < kTokens; ++r) {
      const float of_unit = scales[r * x.units] * static_cast<float>(inputs[r * x.units]);
      sums[r] = _mm512_fmadd_ps(least, _mm512_set1_ps(of_unit), sums[r]);
    }
  }

  int64_t group_of(int64_t u) const {
    return units_of_group == 1 ? u : static_cast<int64_t>(static_cast<uint32_t>(u) / static_cast<uint32_t>(units_of_group));
  }

  // The sums, which the compiler must hold in registers.
  __attribute__((always_inline)) void run(__m512 *out) const {
    __m512 sums[kTokens];
#pragma GCC unroll 16
    for (int r = 0; r < kTokens; ++r) sums[r] = _mm512_setzero_ps();
    if (unpacks) unpack_unit(0);
    settle();
    begin<0>(0), begin<1>(1), begin<2>(2);
    for (int64_t u = 0; u < x.units; u += kInFlight)
      step<0>(u, sums), step<1>(u + 1, sums), step<2>(u + 2, sums), step<3>(u + 3, sums);
#pragma GCC unroll 16
    for (int r = 0; r < kTokens; ++r) out[r] = sums[r];
  }
};

// A panel times sixteen tokens or fewer, whose codes are all there.
template <bool kSigned>
inline void tile_product(const QkMatrix &m, const Panel &panel, int64_t n, const Int8Rows &x, uint8_t *room, bool unpacks,
                         bool is_ring, const Int8Results &to, int row, __m512 bias) {
  alignas(64) int32_t integers[kInFlight][kTokens * kPanel];
  __m512 sums[kTokens];
  Tile<kSigned>{m, panel, room, unpacks, is_ring, n, std::min(x.unit, kDeepest), (m.group + x.unit - 1) / x.unit, x, integers}
      .run(sums);
  for (int r = 0; r < x.count; ++r) int8_vnni::put(to, r, row, sums[r], bias);
}

void product(const QkMatrix &m, int64_t n, int64_t first, int count, const Int8Rows &x, const Int8Results &to, uint8_t *room) {
  const int rest = x.count % kTokens, tiles = x.count / kTokens + (rest >= kFewest ? 1 : 0), few = rest < kFewest ? rest : 0;
  if (tiles == 0) return int8_vnni::product(m, n, first, count, x, to, room);
  configure(std::min(x.unit, kDeepest));
  for (int p = 0; p < count; ++p) {
    const Panel panel(m, n, first + p);
    float all[kPanel];
    to.bias_of(p * kPanel, all);
    const __m512 bias = _mm512_loadu_ps(all);
    for (int t = 0; t < tiles * kTokens; t += kTokens) {
      const Int8Rows some = x.from(t, std::min(kTokens, x.count - t));
      const auto tile = is_signed(m) ? tile_product<true> : tile_product<false>;
      tile(m, panel, n, some, room, t == 0, tiles == 1, to.behind(0, t), p * kPanel, bias);
    }
    if (few == 0) continue;
    const int done = x.count - few;
    int8_vnni::product(m, n, first + p, 1, x.from(done, few), to.behind(p * kPanel, done), room);
  }
  _tile_release();
}

}  // namespace

const Int8Kernels kInt8Amx{int8_vnni::round_rows, product};

}  // namespace qk

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
#endif
