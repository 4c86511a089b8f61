// Weights as AMX tiles want them: 16 rows of 32 bfloat16 inputs. Dense rows are read as they lie; codes and float16 are
// unpacked, rounded to nearest even, a part of the inputs at a time. Included behind the compiler's target.
#pragma once
#include "amx_lanes.h"
#include "matrix.h"

namespace qk {
namespace {

constexpr int kDepth = 32;              // inputs that one tile product sums
constexpr int kTileBytes = 1024;
constexpr int kTileNumbers = 512;       // in a tile of weights
constexpr int64_t kStepsAtOnce = 9;     // of weights and of two tiles of tokens, so that both stay in the first cache
constexpr int64_t kUnpacked = 2 * kStepsAtOnce * kTileNumbers;  // numbers of a pair of blocks that are unpacked at once

// Sixteen rows of a matrix from `row` on; those that it lacks are zero.
struct Block {
  const QkMatrix *matrix = nullptr;
  int64_t row = 0;

  int there() const { return static_cast<int>(std::min<int64_t>(std::max<int64_t>(matrix->rows - row, 0), kLanes)); }
  // Panels lie where rows of the same matrix would: sixteen rows take as much room.
  bool is_plain() const { return (matrix->format == QK_DENSE || matrix->format == QK_BRAIN) && there() == kLanes; }
  const uint16_t *plain(int64_t inputs) const { return static_cast<const uint16_t *>(matrix->data) + row * inputs; }
};

// What is multiplied at once; both blocks take the same activations.
struct Pair {
  Block first, second;

  bool is_there() const { return first.matrix != nullptr; }
  bool is_plain() const { return first.is_plain() && second.is_plain(); }
};

// Two blocks in memory: rows lie `stride` bytes apart, tiles `step` numbers.
struct Rows {
  const uint16_t *first = nullptr, *second = nullptr;
  int64_t stride = 0, step = 0;

  Rows behind(int64_t numbers) const { return first ? Rows{first + numbers, second + numbers, stride, step} : Rows{}; }
};

inline Rows plain_rows(const Pair &w, int64_t inputs) {
  return {w.first.plain(inputs), w.second.plain(inputs), inputs * 2, kDepth};
}

inline bool has_scales(const QkMatrix &m) { return m.format == QK_INT4 || m.format == QK_INT8 || in_panels(m); }

// Bytes of 32 codes or numbers.
inline int64_t chunk_bytes(const QkMatrix &m) {
  switch (m.format) {
    case QK_INT4: case QK_PANEL4: return kDepth / 2;
    case QK_INT8: case QK_PANEL8: return kDepth;
    default: return kDepth * 2;
  }
}

// `steps` times 32 inputs of some rows, from step `from` on, in `groups` groups of `group` inputs, of which `skipped` of
// the first lie before.
struct Strip {
  int64_t inputs, from, steps;
  int64_t group = 0, skipped = 0, first_group = 0, groups = 0;

  Strip(const QkMatrix &m, int64_t inputs, int64_t from, int64_t steps) : inputs(inputs), from(from), steps(steps) {
    if (!has_scales(m)) return;
    group = std::min(m.group, inputs);
    first_group = from * kDepth / group;
    skipped = from * kDepth - first_group * group;
    groups = (skipped + steps * kDepth - 1) / group + 1;
  }
};

// Unpacks up to sixteen rows of a strip step by step: 32 inputs of each row, one row after the other.
class Unpacker {
 public:
  Unpacker(const QkMatrix &m, int64_t row, int rows, const Strip &strip)
      : m_(m), rows_(rows), group_(strip.group), left_(strip.group - strip.skipped), of_row_(in_panels(m) ? 1 : kMost),
        of_group_(in_panels(m) ? kLanes : 1), width_(strip.inputs / kDepth * chunk_bytes(m)),
        data_(static_cast<const uint8_t *>(m.data) + row * width_ + strip.from * chunk_bytes(m)) {
    high_ = left_ > kLanes ? 0 : 1;
    if (in_panels(m)) read_panel(row, strip);
    else if (strip.groups > 0) read_scaling(row, strip);
  }

  void step(uint16_t *to) {
    if (m_.format == QK_INT4 || m_.format == QK_PANEL4) nibbles(to);
    else if (m_.format == QK_INT8 || m_.format == QK_PANEL8) bytes(to);
    else words(to);
    data_ += chunk_bytes(m_);
  }

 private:
  static constexpr int kMost = 2 * kLanes;  // groups
  static_assert(kStepsAtOnce * 2 + 1 <= kMost, "a group has sixteen inputs or more");

  // Codes of a strip of a panel, row by row, and what belongs to them.
  void read_panel(int64_t row, const Strip &strip) {
    const int64_t first = row / kLanes, bytes = chunk_bytes(m_) * kLanes, step = chunk_bytes(m_);
    const uint8_t *from = static_cast<const uint8_t *>(m_.data) + first * kLanes * width_ + strip.from * bytes;
    width_ = strip.steps * step;
    for (int64_t k = 0; k < strip.steps; ++k)
      for (int64_t i = 0; i < step; i += 16) turn_panel(from + k * bytes + i * kLanes, codes_ + k * step + i);
    data_ = codes_ + row % kLanes * width_;
    const __m512 middle = set(step == kDepth / 2 ? -8.0f : -128.0f);
    const int64_t at = (first * groups_of(m_, strip.inputs) + strip.first_group) * kLanes;
    for (int64_t g = 0; g < strip.groups; ++g) {
      const int64_t i = at + g * kLanes;
      const __m512 scale = _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(m_.scales + i)));
      put_scaling(g * kLanes, scale, i, middle, 0xffff);
    }
    base_ = static_cast<int>(row % kLanes);
  }

  // Four times sixteen rows of four bytes -> sixteen rows of sixteen bytes.
  void turn_panel(const uint8_t *from, uint8_t *to) const {
    __m512i r[4];
    for (int j = 0; j < 4; ++j) r[j] = _mm512_loadu_si512(from + j * 64);
    const __m512i a = _mm512_unpacklo_epi32(r[0], r[1]), b = _mm512_unpackhi_epi32(r[0], r[1]);
    const __m512i c = _mm512_unpacklo_epi32(r[2], r[3]), d = _mm512_unpackhi_epi32(r[2], r[3]);
    const __m512i rows[4] = {_mm512_unpacklo_epi64(a, c), _mm512_unpackhi_epi64(a, c), _mm512_unpacklo_epi64(b, d),
                             _mm512_unpackhi_epi64(b, d)};
    const auto put = [&](int row, __m128i x) { _mm_storeu_si128(reinterpret_cast<__m128i *>(to + row * width_), x); };
    for (int j = 0; j < 4; ++j) {
      put(j, _mm512_extracti32x4_epi32(rows[j], 0)), put(j + 4, _mm512_extracti32x4_epi32(rows[j], 1));
      put(j + 8, _mm512_extracti32x4_epi32(rows[j], 2)), put(j + 12, _mm512_extracti32x4_epi32(rows[j], 3));
    }
  }

  // Sixteen scales and what belongs to them, of which `there` exist, `at` of the matrix's.
  void put_scaling(int64_t to, __m512 scale, int64_t at, __m512 middle, __mmask16 there) {
    __m512 offset = _mm512_mul_ps(scale, middle);
    if (m_.mins) {
      offset = _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(there, m_.mins + at));
    } else if (m_.zeros) {
      const __m512i zero = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(there, m_.zeros + at));
      offset = _mm512_mul_ps(scale, _mm512_sub_ps(set(0.0f), _mm512_cvtepi32_ps(zero)));
    }
    write(scales_ + to, scale), write(offsets_ + to, offset);
  }

  void read_scaling(int64_t row, const Strip &strip) {
    const int64_t all = groups_of(m_, strip.inputs);
    const __m512 middle = set(m_.format == QK_INT4 ? -8.0f : -128.0f);
    for (int64_t i = 0; i < strip.groups; i += kLanes) {
      const __mmask16 there = lane_mask(0, static_cast<int>(std::min<int64_t>(strip.groups - i, kLanes)));
      for (int r = 0; r < rows_; ++r) {
        const int64_t at = (row + r) * all + strip.first_group + i;
        put_scaling(r * kMost + i, _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(there, m_.scales + at)), at, middle, there);
      }
    }
  }

  __m512 number(__m512 codes, int r, int64_t group) const {
    const int64_t at = (r + base_) * of_row_ + group * of_group_;
    return _mm512_fmadd_ps(codes, set(scales_[at]), set(offsets_[at]));
  }

  // To the groups of the next step's first and last 16 inputs.
  void advance() {
    const int64_t low = low_, high = high_;
    for (left_ -= kDepth; left_ <= 0; left_ += group_) ++low_;
    high_ = left_ > kLanes ? low_ : low_ + 1;
    is_new_ = low != low_ || high != high_;
  }

  void nibbles(uint16_t *to) {
    const __m512 grid = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i shift = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi16(4), 1);
    // Copies, since the compiler must take what is written for members.
    const int rows = rows_;
    const int64_t width = width_;
    const uint8_t *data = data_;
    const auto index = [=](int r) {
      const __m128i raw = _mm_loadu_si128(reinterpret_cast<const __m128i *>(data + r * width));
      return _mm512_srlv_epi16(_mm512_cvtepu8_epi16(_mm256_broadcastsi128_si256(raw)), shift);
    };
    if (low_ == high_) {  // the halves of a table are the same: a fifth bit does not matter
      if (is_new_)
        for (int r = 0; r < rows; ++r) {
          const __m512 all = number(grid, r, low_);
          tables_[r] = narrow(all, all);
        }
      for (int r = 0; r < rows; ++r) write(to + r * kDepth, _mm512_permutexvar_epi16(index(r), tables_[r]));
      return advance();
    }
    const __m512i upper = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi16(16), 1);
    for (int r = 0; r < rows; ++r) {
      const __m512i code = _mm512_and_si512(index(r), _mm512_set1_epi16(15));
      const __m512i table = narrow(number(grid, r, low_), number(grid, r, high_));
      write(to + r * kDepth, _mm512_permutexvar_epi16(_mm512_or_si512(code, upper), table));
    }
    advance();
  }

  void bytes(uint16_t *to) {
    const auto numbers = [](const uint8_t *p) {
      return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p))));
    };
    const int rows = rows_;
    const int64_t width = width_, low = low_, high = high_;
    const uint8_t *data = data_;
    for (int r = 0; r < rows; ++r) {
      const uint8_t *p = data + r * width;
      write(to + r * kDepth, narrow(number(numbers(p), r, low), number(numbers(p + kLanes), r, high)));
    }
    advance();
  }

  void words(uint16_t *to) const {
    const auto half = [](const uint8_t *p) {
      return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)));
    };
    for (int r = 0; r < rows_; ++r) {
      const uint8_t *p = data_ + r * width_;
      write(to + r * kDepth, m_.format == QK_HALF ? narrow(half(p), half(p + kDepth)) : _mm512_loadu_si512(p));
    }
  }

  const QkMatrix &m_;
  const int rows_;
  const int64_t group_;
  int64_t left_, low_ = 0, high_ = 0;  // inputs of the group from here on; groups among those of the strip
  bool is_new_ = true;
  int base_ = 0;                        // of the panel, the first row that is unpacked
  const int64_t of_row_, of_group_;     // numbers from one row's or group's scaling to the next
  int64_t width_;                       // bytes of a row
  const uint8_t *data_;
  alignas(64) float scales_[kLanes * kMost], offsets_[kLanes * kMost];  // number = scale * code + offset
  alignas(64) uint8_t codes_[kLanes * kStepsAtOnce * kDepth];           // of a panel, row by row
  __m512i tables_[kLanes];  // of each row what a code stands for, for the first 16 inputs and for the last
};

inline Unpacker unpacker(const Block &b, int64_t inputs, int64_t from, int64_t steps) {
  return Unpacker(*b.matrix, b.row, b.there(), Strip(*b.matrix, inputs, from, steps));
}

// Bytes of a row's `inputs` numbers.
inline int64_t row_bytes(const QkMatrix &m, int64_t inputs) {
  return inputs / kDepth * chunk_bytes(m);
}

inline void fetch_bytes(const void *p, int64_t from, int64_t to) {
  for (int64_t i = from / 64 * 64; i < to; i += 64) _mm_prefetch(static_cast<const char *>(p) + i, _MM_HINT_T0);
}

// Has the cache fetch a share of a block, all rows of which lie together: `steps` of it, from step `from` on.
inline void fetch_codes(const Block &b, int64_t inputs, int64_t from, int64_t steps) {
  const QkMatrix &m = *b.matrix;
  const int64_t bytes = row_bytes(m, inputs), share = b.there() * row_bytes(m, kDepth);
  fetch_bytes(static_cast<const char *>(m.data) + b.row * bytes, share * from, share * (from + steps));
}

// And what belongs to the codes, all of it.
inline void fetch_scaling(const Block &b, int64_t inputs) {
  const QkMatrix &m = *b.matrix;
  if (!has_scales(m)) return;
  const int64_t groups = groups_of(m, inputs), count = b.there() * groups, from = b.row * groups;
  fetch_bytes(m.scales + from, 0, count * 2);
  if (m.zeros) fetch_bytes(m.zeros + from, 0, count);
  if (m.mins) fetch_bytes(m.mins + from, 0, count * 2);
}

// Rows that a pair lacks, in `tiles` pairs of tiles.
inline void clear_absent(const Pair &w, int64_t tiles, uint16_t *room) {
  for (int64_t i = 0; i < 2 * tiles; ++i)
    for (int r = (i % 2 ? w.second : w.first).there(); r < kLanes; ++r)
      write(room + i * kTileNumbers + r * kDepth, _mm512_setzero_si512());
}

// Unpacks a part of a pair, calling then(step, where the step's two tiles lie) for each, while the cache fetches as much
// of what comes next. `tiles` steps have room, in turn; absent rows are zero there already.
template <class Then>
inline void unpack(const Pair &w, int64_t inputs, int64_t from, int64_t steps, const Pair &ahead, uint16_t *room,
                   int64_t tiles, const Then &then) {
  Unpacker first = unpacker(w.first, inputs, from, steps), second = unpacker(w.second, inputs, from, steps);
  if (ahead.is_there() && from == 0) {
    fetch_scaling(ahead.first, inputs);
    fetch_scaling(ahead.second, inputs);
  }
  for (int64_t k = from; k < from + steps; ++k) {
    if (ahead.is_there()) {
      fetch_codes(ahead.first, inputs, k, 1);
      fetch_codes(ahead.second, inputs, k, 1);
    }
    uint16_t *to = room + k % tiles * 2 * kTileNumbers;
    first.step(to);
    second.step(to + kTileNumbers);
    then(k, to);
  }
}

}  // namespace
}  // namespace qk
