// Products of packed weights and activations that are rounded to 8 bits: weights in panels of sixteen rows.
//
// Activations of one token are cut into units of inputs that share a scale, max |x| / 127. For every unit the products
// of integers are summed exactly; units follow one another in one float32 accumulator:
//   sum = fma(float(integers), weight scale * unit scale, sum), and with mins  sum = fma(min, unit scale * float(inputs), sum)
// so a row has the same bits beside any number of others and with any instruction set.
#pragma once
#include <cstring>
#include <memory>
#include <new>

#include "matrix.h"

namespace qk {

constexpr int kPanel = 16;        // rows of weights that lie together
constexpr int64_t kChunkOf = 32;  // inputs whose codes of one panel lie together
constexpr float kInt8Least = 1e-30f;  // units without a larger number count as zero

inline int64_t units_of(int64_t n, int64_t unit) { return (n + unit - 1) / unit; }

// Rounded activations of some tokens; a row has `stride` bytes, of which those behind its n inputs are anything.
struct Int8Rows {
  int8_t *codes;   // (count, stride)
  float *scales;   // (count, units); NaN if the unit holds a number that is not finite
  int32_t *sums;   // (count, units) of the codes
  int64_t stride, units, unit;
  int count;

  Int8Rows from(int first, int number) const {
    return {codes + first * stride, scales + first * units, sums + first * units, stride, units, unit, number};
  }
};

// Bytes between rows of n codes: whole tiles.
inline int64_t int8_stride(int64_t n) { return (n + 63) / 64 * 64; }

// Zeros that begin with a cache line: tiles whose rows lie in two of them take twice the time.
template <class T>
class Lines {
 public:
  explicit Lines(int64_t size) : data_(new (std::align_val_t(64)) T[size]()) {}
  T *get() const { return data_.get(); }

 private:
  struct Release {
    void operator()(T *p) const { ::operator delete[](p, std::align_val_t(64)); }
  };
  std::unique_ptr<T[], Release> data_;
};

// Room for rounded activations. Tiles may read fifteen tokens more than there are; what is not used is zero.
class Int8Buffer {
 public:
  Int8Buffer(int64_t count, int64_t most_inputs)
      : codes_((count + 16) * int8_stride(most_inputs)), scales_((count + 16) * units_of(most_inputs, kChunkOf)),
        sums_((count + 16) * units_of(most_inputs, kChunkOf)) {}

  Int8Rows rows(int count, int64_t n, int64_t unit) {
    return {codes_.get(), scales_.get(), sums_.get(), int8_stride(n), units_of(n, unit), unit, count};
  }

 private:
  Lines<int8_t> codes_;
  Lines<float> scales_;
  Lines<int32_t> sums_;
};

// Where products go, (token, row of the layer), with a bias of the model's type.
struct Int8Results {
  float *out;         // of the first row that is computed
  int64_t width;      // from one token to the next
  bool adds;          // to what is there
  const void *bias;   // of the first row; null: none
  int32_t type;

  Int8Results behind(int row, int token = 0) const {
    const void *next = bias ? static_cast<const char *>(bias) + row * (type == QK_F32 ? 4 : 2) : nullptr;
    return {out + token * width + row, width, adds, next, type};
  }

  // Of a panel's sixteen rows from `row` on.
  void bias_of(int row, float *to) const {
    for (int i = 0; i < kPanel; ++i) to[i] = bias ? one(row + i) : 0.0f;
  }

 private:
  float one(int row) const {
    float f;
    if (type == QK_F32) return static_cast<const float *>(bias)[row];
    const uint16_t half = static_cast<const uint16_t *>(bias)[row];
    if (type == QK_F16) return half_to_float(half);
    const uint32_t bits = static_cast<uint32_t>(half) << 16;
    std::memcpy(&f, &bits, 4);
    return f;
  }

 public:
  static float half_to_float(uint16_t half) {
    const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16, exponent = half >> 10 & 31, rest = half & 1023;
    float f;
    if (exponent == 0) {
      f = static_cast<float>(rest) * 0x1p-24f;
      return sign ? -f : f;
    }
    const uint32_t bits = sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | rest << 13;
    std::memcpy(&f, &bits, 4);
    return f;
  }
};

// One panel: codes, and per group of inputs sixteen scales and zeros or mins.
struct Panel {
  const uint8_t *codes;
  const uint16_t *scales, *mins;
  const uint8_t *zeros;

  Panel(const QkMatrix &m, int64_t n, int64_t number) {
    const int64_t groups = groups_of(m, n) * kPanel;
    codes = static_cast<const uint8_t *>(m.data) + number * n * (m.format == QK_PANEL4 ? 8 : 16);
    scales = m.scales + number * groups;
    mins = m.mins ? m.mins + number * groups : nullptr;
    zeros = m.zeros ? m.zeros + number * groups : nullptr;
  }
};

// What an instruction set makes of it.
struct Int8Kernels {
  // Rounds rows of n numbers that lie `stride` numbers apart.
  void (*round)(const float *x, int64_t stride, int64_t n, const Int8Rows &to);
  // Panels first .. first + count - 1 of a matrix times all rows. `room` is for int8_room() bytes.
  void (*product)(const QkMatrix &m, int64_t n, int64_t first, int count, const Int8Rows &x, const Int8Results &to,
                  uint8_t *room);
};

// Bytes that a product with n inputs needs to itself.
inline int64_t int8_room(int64_t n) { return (n + 64) * kPanel; }  // a multiple of 64

extern const Int8Kernels kInt8Portable;
#if defined(__x86_64__)
extern const Int8Kernels kInt8Avx2, kInt8Vnni;
bool vnni_available();
// Sixteen tokens and more at once, on a CPU with AMX; fewer as kInt8Vnni does.
extern const Int8Kernels kInt8Amx;
bool int8_tiles_available();
#endif

}  // namespace qk
