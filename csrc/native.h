// The C interface between Python (kernels/native.py mirrors these structs) and the CPU kernels.
// All pointers are to memory that Python keeps alive for the length of a call. Nothing here allocates or frees it.
#pragma once
#include <cstdint>

// Count up with every change of what follows, so that Python refuses a library that was compiled before it.
#define QK_ABI_VERSION 5
#define QK_API __attribute__((visibility("default")))

extern "C" {

// Type of dense weights and, unless they are quantised, of cached keys and values.
enum QkType : int32_t { QK_F32 = 0, QK_BF16 = 1, QK_F16 = 2 };

// Instruction sets. QK_AMX differs from QK_AVX512 only for bfloat16 models with a head width divisible by 32.
enum QkIsa : int32_t { QK_PORTABLE = 0, QK_AVX2 = 1, QK_AVX512 = 2, QK_AMX = 3 };

enum : int32_t { QK_PAGE = 32 };  // tokens in a page of the cache

// How the numbers of a matrix are stored.
enum QkFormat : int32_t {
  QK_DENSE = 0,  // in the model's type
  QK_HALF = 1,   // float16, whatever the model's type
  QK_BRAIN = 2,  // bfloat16, whatever the model's type
  QK_INT4 = 3,   // codes of PackedWeight (kernels/packed.py)
  QK_INT8 = 4,
  QK_PANEL4 = 5,  // the same codes in panels of 16 rows (PanelWeight of kernels/panels.py)
  QK_PANEL8 = 6,
};

// Rows of weights. An integer code stands for scale * (code - zero), or scale * code + min, in float32.
struct QkMatrix {
  int32_t format, rows;
  int64_t group;           // inputs that share a scale: a multiple of 16, or at least all of a row
  const void *data;        // (rows, n) numbers; INT8: (rows, n) bytes; INT4: (rows, n / 32, 16) bytes, of which byte j
                           // holds input j of its 32 low and j + 16 high (n is a multiple of 32)
  const uint16_t *scales;  // (rows, groups) float16, groups = ceil(n / group)
  const uint8_t *zeros;    // (rows, groups); null: 8 or 128; of PANEL4 at most 128
  const uint16_t *mins;    // (rows, groups) float16, instead of zeros; null: none
  const int32_t *order;    // (n): column j belongs to input order[j]; null: to input j. Matrices with the same order
                           // had better share the array: activations are put in order once for each array
  // PANEL4, PANEL8: rows is divisible by 16, n and group by 32, or group is at least n. Data is (rows / 16, n / 32) blocks
  // of 32 inputs of 16 rows. PANEL8: byte (i / 4, row, i % 4) is the code of input i. PANEL4: byte (i / 4, row, i % 4), of
  // 16 inputs, holds input i low and i + 16 high. Scales, zeros and mins are (rows / 16, groups, 16).
};

// Matrices below one another, as one linear layer.
struct QkLinear {
  int32_t parts;
  const QkMatrix *part;
  const void *bias;  // of all parts, in the model's type; null: none
};

struct QkLayer {
  const void *attn_norm, *q_norm, *k_norm, *ffn_norm;  // absent ones are null
  QkLinear qkv, out, gate_up, down;
  int64_t window;  // keys a query sees, itself included; 0: all
};

struct QkModel {
  int32_t type, layers, hidden, heads, kv_heads, head_dim, ffn, vocab, rotary;
  float eps;
  const void *norm;
  QkMatrix embed, head;
  const QkLayer *layer;
};

// Pages of keys and values, all sequences'. Page p, layer l, key head j is block number (p * layers + l) * kv_heads + j.
// A block holds QK_PAGE tokens (t) of head_dim numbers (i):
//   F32, F16   keys (i, t)           values (t, i)           in the model's type
//   BF16       keys (i / 2, t, i % 2)   values (t / 2, i, t % 2)   so that pairs along the sums lie together
//              (an odd head_dim counts as the next even one in these keys)
//   int8       keys (i, t)           values (t, i)           uint8; the number is scale * (byte - zero)
// and for int8 one bfloat16 scale and one uint8 zero per token: key_scale, value_scale, key_zero, value_zero (block, t).
struct QkPool {
  void *keys, *values;
  uint16_t *key_scale, *value_scale;
  uint8_t *key_zero, *value_zero;
  int32_t int8;
};

// y += b (a x) on one linear layer; a (rank, in), b (out, rank) in the model's type, the LoRA scale folded into b.
// rank 0: none. For fused layers (qkv, gate_up) a holds the parts' rows one after the other, b is block-diagonal.
struct QkLora {
  int32_t rank;
  const void *a, *b;
};

struct QkAdapter {
  const QkLora *lora;  // (layers, 4): qkv, out, gate_up, down
  const void *embed, *head;  // replace the model's; null: as the model
};

// New tokens of one sequence.
struct QkSpan {
  const int32_t *pages;  // page numbers of the sequence, with room for length + count tokens
  int64_t length, count;  // tokens stored before, tokens new
  const float *cos, *sin;  // (count, rotary): angles twice, the first half of sin negated
  const float *query_scale;  // (count); null: 1
  const QkAdapter *adapter;  // null: none
};

enum QkStatus : int32_t { QK_DONE = 0, QK_NO_ISA = 1, QK_NO_MEMORY = 2 };

enum QkKind : int32_t { QK_GPTQ = 0, QK_GEMM = 1, QK_GEMV = 2 };

// A matrix as the words of a GPTQ or AWQ checkpoint hold it: k inputs, n outputs, scale * (code - zero).
struct QkWords {
  int32_t kind, bits, version;  // GPTQ: 4 or 8 bits, and version 1 stores zeros less one; AWQ: 4 bits and version 2
  int32_t scale_type;           // QK_F16 or QK_BF16
  int64_t k, n, group, width;   // inputs that share a scale; GEMV: words of zeros of an output
  const uint32_t *codes, *zeros;  // as in the files: GPTQ (k * bits / 32, n) and (groups, n * bits / 32), GEMM (k, n / 8)
                                  // and (groups, n / 8), GEMV (n, k / 8) and (n, width)
  const void *scales;             // (groups, n); GEMV: (n, 8 * width)
  const int64_t *order;           // (k) GPTQ: row j of the result belongs to input order[j]; null: to input j
};

// QK_ABI_VERSION and the sizes of QkLayer, QkModel, QkPool, QkLora, QkAdapter, QkSpan, QkMatrix, QkLinear and QkWords, for
// Python to compare first.
QK_API void qk_abi(int64_t out[10]);

// The fastest instruction set of this CPU (AMX only once the system has permitted its registers).
QK_API int32_t qk_best_isa();

// Runs the new tokens of all spans (their tokens one after the other), stores keys and values, and writes for each of
// `num_rows` positions (numbers into the flat row of tokens) logits (num_rows, vocab), or with `hidden` not 0 the
// output of the last norm (num_rows, hidden). A row's numbers depend on its own sequence alone: neither on the other
// spans, nor on how a sequence is cut into calls, nor on the number of threads.
// Returns a QkStatus; nothing was stored unless QK_DONE.
// Matrices in panels are multiplied with activations rounded to 8 bits (int8.h), on all instruction sets with the same
// result; only AMX with `int8` 0 takes them as the numbers that they stand for, which is faster for many tokens.
QK_API int32_t qk_forward(const QkModel *model, const QkPool *pool, int32_t num_spans, const QkSpan *spans,
                          const int64_t *tokens, int32_t num_rows, const int64_t *rows, float *out, int32_t hidden,
                          int32_t int8, int32_t threads, int32_t isa);

// One matrix in panels times `count` rows of n numbers, rounded to 8 bits, as qk_forward multiplies them:
// out (count, rows).
QK_API int32_t qk_int8_product(const QkMatrix *matrix, int64_t n, const float *x, int32_t count, float *out,
                               int32_t threads, int32_t isa);

// How a caller wants a job to be run by several threads: run(job) by each of them, at most `threads`, and back when all are
// done. It is GOMP_parallel of an OpenMP library, whose threads may be awake already. Null: our own threads.
typedef void (*QkParallel)(void (*run)(void *), void *job, uint32_t threads, uint32_t flags);

// out[i] = x[i] * scale, or 0 where the number that belongs to `seed` and i is below `threshold`, of 2^32. Types F32 and
// BF16. The same on all instruction sets.
QK_API int32_t qk_dropout(const void *x, void *out, int64_t count, int32_t type, uint64_t seed, uint32_t threshold,
                          float scale, QkParallel parallel, int32_t threads, int32_t isa);

// The numbers of a matrix, rounded once to `type` (F32 or BF16): (k, n), inputs as ordered; of GEMV (n, k).
QK_API int32_t qk_unpack_words(const QkWords *words, void *out, int32_t type, QkParallel parallel, int32_t threads,
                               int32_t isa);
}
