// The AMX variant of the forward pass, in decode_amx.cpp.
#pragma once
#include "step.h"

namespace qk {

// Whether the two blocks of rows that are multiplied at once, neighbours or `across` (gate and up), always take the
// same activations, and no block lies in two parts.
inline bool amx_can_run(const QkLinear &l, bool across) {
  for (int i = 0; i < l.parts; ++i)
    if (l.part[i].rows % (across ? 16 : 32) || (across && l.part[i].order != l.part->order)) return false;
  return true;
}

// Whether the shapes fill whole tiles. forward_amx runs other models by forward_avx512.
inline bool amx_can_run(const QkModel &m) {
  if (m.type != QK_BF16 || m.head_dim % 32 || m.hidden % 32 || m.ffn % 32 || m.embed.order) return false;
  for (int i = 0; i < m.layers; ++i) {
    const QkLayer &l = m.layer[i];
    if (!amx_can_run(l.qkv, false) || !amx_can_run(l.out, false) || !amx_can_run(l.down, false)) return false;
    if (!amx_can_run(l.gate_up, true)) return false;
  }
  return true;
}

}  // namespace qk
