// The C interface between Python (kernels/native.py mirrors these structs) and the CPU kernels.
// All pointers are to memory that Python keeps alive for the length of a call. Nothing here allocates or frees it.
#pragma once
#include <cstdint>

// Count up with every change of what follows, so that Python refuses a library that was compiled before it.
#define QK_ABI_VERSION 1
#define QK_API __attribute__((visibility("default")))

extern "C" {

// Type of weights and cached keys and values.
enum QkType : int32_t { QK_F32 = 0, QK_BF16 = 1, QK_F16 = 2 };

// Instruction sets a step can be run with.
enum QkIsa : int32_t { QK_PORTABLE = 0, QK_AVX2 = 1, QK_AVX512 = 2 };

struct QkLayer {
  const void *attn_norm, *qkv_weight, *qkv_bias, *q_norm, *k_norm, *out_weight, *out_bias;
  const void *ffn_norm, *gate_up_weight, *gate_up_bias, *down_weight, *down_bias;  // absent ones are null
  int64_t window;  // keys a query sees, itself included; 0: all
};

struct QkModel {
  int32_t type, layers, hidden, heads, kv_heads, head_dim, ffn, vocab, rotary;
  float eps;
  const void *embed, *norm, *head;
  const QkLayer *layer;
};

struct QkSequence {
  void *keys, *values;  // (layers, kv_heads, capacity, head_dim)
  int64_t capacity, length;  // length: tokens stored before this step
  const float *cos, *sin;  // (rotary): angles twice, the first half of sin negated
  float query_scale;
};

enum QkStatus : int32_t { QK_DONE = 0, QK_NO_ISA = 1, QK_NO_MEMORY = 2 };

// QK_ABI_VERSION and the sizes of QkLayer, QkModel and QkSequence, for Python to compare before anything else.
QK_API void qk_abi(int64_t out[4]);

// The fastest instruction set of this CPU.
QK_API int32_t qk_best_isa();

// One token for each of `batch` sequences: stores its keys and values, writes (batch, vocab) logits.
// Returns a QkStatus: QK_NO_ISA for an instruction set this CPU does not have; nothing was stored unless QK_DONE.
QK_API int32_t qk_decode(const QkModel *model, int32_t batch, const int64_t *tokens, const QkSequence *sequences,
                         float *logits, int32_t threads, int32_t isa);
}
