// The AMX variant of the forward pass, in decode_amx.cpp.
#pragma once
#include "step.h"

namespace qk {

// Whether the shapes fill whole tiles. forward_amx runs other models by forward_avx512.
inline bool amx_can_run(const QkModel &m) {
  return m.type == QK_BF16 && m.head_dim % 32 == 0 && m.hidden % 32 == 0 && m.ffn % 32 == 0;
}

}  // namespace qk
