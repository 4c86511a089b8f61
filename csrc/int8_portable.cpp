// Products with 8-bit activations in plain C++: what the other instruction sets are compared with.
#include <cmath>

#include "int8.h"

namespace qk {
namespace {

void round_rows(const float *x, int64_t stride, int64_t n, const Int8Rows &to) {
  for (int t = 0; t < to.count; ++t)
    for (int64_t u = 0; u < to.units; ++u) {
      const float *from = x + t * stride + u * to.unit;
      const int64_t count = std::min(to.unit, n - u * to.unit);
      int8_t *codes = to.codes + t * to.stride + u * to.unit;
      float most = 0.0f, finite = 0.0f;  // 0, or NaN
      for (int64_t i = 0; i < count; ++i) most = std::max(most, std::fabs(from[i])), finite += from[i] * 0.0f;
      const bool is_plain = most > kInt8Least && finite == 0.0f;
      const float inverse = is_plain ? 127.0f / most : 0.0f;
      int32_t sum = 0;
      for (int64_t i = 0; i < count; ++i) {
        codes[i] = is_plain ? static_cast<int8_t>(std::nearbyint(from[i] * inverse)) : int8_t{0};
        sum += codes[i];
      }
      to.scales[t * to.units + u] = is_plain ? most / 127.0f : finite;
      to.sums[t * to.units + u] = sum;
    }
}

int code_of(const QkMatrix &m, const uint8_t *codes, int64_t input, int row) {
  const int64_t chunk = input / kChunkOf, i = input % kChunkOf;
  if (m.format == QK_PANEL8) return codes[chunk * 512 + i / 4 * 64 + row * 4 + i % 4];
  const uint8_t both = codes[chunk * 256 + i % 16 / 4 * 64 + row * 4 + i % 4];
  return i < 16 ? both & 15 : both >> 4;
}

void product(const QkMatrix &m, int64_t n, int64_t first, int count, const Int8Rows &x, const Int8Results &to, uint8_t *) {
  const int middle = m.format == QK_PANEL4 ? 8 : 128;
  for (int p = 0; p < count; ++p) {
    const Panel panel(m, n, first + p);
    float bias[kPanel];
    to.bias_of(p * kPanel, bias);
    for (int t = 0; t < x.count; ++t)
      for (int row = 0; row < kPanel; ++row) {
        float sum = 0.0f;
        for (int64_t u = 0; u < x.units; ++u) {
          const int64_t from = u * x.unit, end = std::min(from + x.unit, n), at = from / m.group * kPanel + row;
          int32_t integers = 0;
          for (int64_t i = from; i < end; ++i) integers += code_of(m, panel.codes, i, row) * x.codes[t * x.stride + i];
          const float unit_scale = x.scales[t * x.units + u], scale = Int8Results::half_to_float(panel.scales[at]) * unit_scale;
          const int32_t inputs = x.sums[t * x.units + u];
          if (!panel.mins) integers -= (panel.zeros ? panel.zeros[at] : middle) * inputs;
          sum = std::fma(static_cast<float>(integers), scale, sum);
          if (panel.mins) sum = std::fma(Int8Results::half_to_float(panel.mins[at]), unit_scale * static_cast<float>(inputs), sum);
        }
        float &out = to.out[t * to.width + p * kPanel + row];
        if (to.bias) sum += bias[row];
        out = to.adds ? out + sum : sum;
      }
  }
}

}  // namespace

const Int8Kernels kInt8Portable{round_rows, product};

}  // namespace qk
