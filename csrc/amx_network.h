// The network on AMX tiles, for bfloat16 models: what step.inc computes, with the tokens of all spans side by side in
// tiles of sixteen. The residual stream is float32 (tile, i, token); inputs of products are bfloat16, packed as
// amx_tiles.h wants them. A token's lane is computed on its own, so its numbers depend on its own sequence alone.
//
// Threads take pieces of each phase and meet before the next one. Each takes the next piece when it begins one, to
// have its weights fetched ahead: memory, not arithmetic, is what a few tokens wait for.
#pragma once
#include "amx_attend.h"
#include "amx_plan.h"

namespace qk {
namespace {

constexpr int64_t kPackedBytes = 768 * 1024;  // packed inputs that stay in the second cache while weights pass
constexpr int kTogether = 32;                 // and no more tiles than these at once
constexpr int kMany = 6;                      // tiles from which on weights are unpacked once for all of them
constexpr int64_t kBlockBytes = 512 * 1024;   // of weights that stay in the second cache while tiles pass
constexpr int kMostPairs = 8;                 // and no more pairs than these
constexpr int kPhases = 16;                   // no layer has more

template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t size = 0) : data_(new (std::align_val_t{64}) T[size]) {}
  ~Buffer() { ::operator delete[](data_, std::align_val_t{64}); }
  Buffer(const Buffer &) = delete;
  Buffer &operator=(const Buffer &) = delete;
  T *get() const { return data_; }

 private:
  T *data_;
};

// What each thread has to itself.
struct Own {
  explicit Own(const QkModel &m, bool many)
      : normed(static_cast<int64_t>(kOwnTiles) * m.hidden * kLanes),
        results(static_cast<int64_t>(kTogether) * std::max(m.head_dim, 2 * kLanes) * kLanes),
        unpacked(many ? std::max({room(m.hidden, m.head_dim / (2 * kLanes)), room(int64_t{m.heads} * m.head_dim, 1), room(m.ffn, 1)})
                      : kUnpacked),
        row(m.hidden),
        sums(static_cast<int64_t>(kLanes) * m.head_dim * (m.heads / m.kv_heads)),
        keys(kChunk * m.head_dim),
        values(kChunk * m.head_dim),
        progress(m.heads / m.kv_heads) {}

  static constexpr int kOwnTiles = 2;  // up to so many are normed by every thread for itself
  int phase = 0;

  // Numbers that `pairs` whole pairs take, or as many as are unpacked at once.
  static int64_t room(int64_t inputs, int pairs) { return inputs * 2 * kLanes * std::max(pairs, pairs_at_once(inputs)); }

  static int pairs_at_once(int64_t inputs) {
    return static_cast<int>(std::min<int64_t>(std::max<int64_t>(kBlockBytes / (inputs * 4 * kLanes), 1), kMostPairs));
  }

  // Two tiles of results for a tile of tokens.
  float *result(int tile) const { return results.get() + tile % kTogether * 2 * kTile; }

  Buffer<uint16_t> normed;
  Buffer<float> results;
  Buffer<uint16_t> unpacked;  // weights
  Buffer<uint16_t> row;       // of the embedding
  std::vector<Rows> rows{kMostPairs};  // where unpacked pairs lie
  Buffer<float> sums;  // of attention, per query head
  Buffer<uint16_t> keys, values;  // a chunk that was int8
  std::vector<Progress> progress;
  Scratch scratch;
};

class Network {
 public:
  explicit Network(const Forward &f)
      : f_(f),
        m_(*f.model),
        plan_(f),
        barrier_(f.threads),
        counters_(kPhases * (m_.layers + 1) + plan_.heads.size()),
        heads_(static_cast<int64_t>(m_.heads) * m_.head_dim),
        x_(size(plan_.all.count, m_.hidden)),
        wanted_x_(plan_.gathers ? size(plan_.wanted.count, m_.hidden) : 0),
        normed_(size(most(), m_.hidden)),
        attended_(size(plan_.all.count, heads_)),
        inner_(size(most(), m_.ffn)),
        ordered_(most() * kLanes * most_ordered(m_)),
        low_rank_(std::max(plan_.all.low_rank_size, plan_.wanted.low_rank_size)),
        queries_(size(plan_.all.count + 1, heads_)),
        cos_(size(plan_.all.count, m_.rotary)),
        sin_(size(plan_.all.count, m_.rotary)) {
    // What no query writes is read all the same: it must not make arithmetic slow.
    if (plan_.all.count > 0)
      std::fill_n(attended_.get() + size(plan_.all.count - 1, heads_), size(1, heads_), static_cast<uint16_t>(0));
    for (int t = 0; t < f.threads; ++t) own_.push_back(std::make_unique<Own>(m_, most() >= kMany));
  }

  void run(int thread) {
    Own &own = *own_[thread];
    configure_tiles();
    pieces(plan_.all.count, [&](int tile, int) { embed(tile, own); }, own, thread);
    const bool gathers = plan_.gathers;
    for (int l = 0; l < m_.layers; ++l) {
      const QkLayer &layer = m_.layer[l];
      attention(layer, l, own, thread);
      const bool last = gathers && l + 1 == m_.layers;
      if (last) pieces(plan_.wanted.count, [&](int tile, int) { gather(tile); }, own, thread);
      feed_forward(layer, l, last ? plan_.wanted : plan_.all, last ? wanted_x_.get() : x_.get(), own, thread);
    }
    output(gathers ? wanted_x_.get() : x_.get(), own, thread);
    _tile_release();
  }

 private:
  int64_t most() const { return std::max(plan_.all.count, plan_.wanted.count); }
  static int64_t size(int64_t tiles, int64_t width) { return tiles * width * kLanes; }
  static const uint16_t *at(const void *p) { return static_cast<const uint16_t *>(p); }

  // Hands out 0 .. count - 1; work(number, the one after or -1). All threads meet at the end.
  template <class Work>
  void pieces(int count, const Work &work, Own &own, int thread) {
    std::atomic<int> &taken = counters_[own.phase++];
    for (int now = thread; now < count;) {
      const int next = f_.threads + taken.fetch_add(1, std::memory_order_relaxed);
      work(now, next < count ? next : -1);
      now = next;
    }
    barrier_.wait();
  }

  // A layer of `inputs` numbers a row, in pairs of blocks of 16 rows; the second block lies `apart` rows further.
  struct Matrix {
    const QkLinear &linear;
    int64_t inputs;
    int pairs, apart;

    Pair pair(int number) const {
      const int64_t first = (apart == kLanes ? 2 : 1) * static_cast<int64_t>(number) * kLanes;
      return {block(first), block(first + apart)};
    }

   private:
    Block block(int64_t row) const {
      const QkMatrix *part = linear.part, *last = part + linear.parts - 1;
      while (part < last && row >= part->rows) row -= part++->rows;
      return {part, row};
    }
  };

  // Packed inputs of a layer, and where they are again in the orders of its parts.
  struct Inputs {
    const QkLinear &linear;
    const uint16_t *own, *ordered;
    int64_t size;

    const uint16_t *of(const Pair &w) const {
      const QkMatrix &part = *w.first.matrix;
      return part.order ? ordered + first_alike(linear, part) * size : own;
    }
  };

  // Tiles of tokens that are computed with the same weights at once.
  static int together(int64_t inputs) {
    const int64_t fit = kPackedBytes / (inputs * kLanes * 2) / 2 * 2;
    return static_cast<int>(std::min<int64_t>(std::max<int64_t>(fit, 2), kTogether));
  }

  // All of a matrix times all tiles of packed inputs: to(pair, tile) is where two tiles of results go, or are added to,
  // finish(pair, tile, results) takes them from there.
  template <class To, class Finish>
  void product(const Matrix &w, const uint16_t *packed, int tiles, bool add, const To &to, const Finish &finish,
               Own &own, int thread) {
    const Inputs inputs = ordered(w, packed, tiles, own, thread);
    if (tiles >= kMany) {
      const int block = Own::pairs_at_once(w.inputs);
      return pieces((w.pairs + block - 1) / block, [&](int piece, int) {
        const int first = piece * block;
        many_tiles(w, inputs, first, std::min(block, w.pairs - first), tiles, add, to, own, [&](int pair, int tile, int count) {
          for (int t = tile; t < tile + count; ++t) finish(pair, t, to(pair, t));
        });
      }, own, thread);
    }
    const int group = together(w.inputs);
    pieces(w.pairs * ((tiles + group - 1) / group), [&](int piece, int next) {
      const int pair = piece % w.pairs, first = piece / w.pairs * group, end = std::min(first + group, tiles);
      const Pair now = w.pair(pair), ahead = next < 0 ? Pair{} : w.pair(next % w.pairs);
      const auto place = [&](int tile) { return to(pair, tile); };
      multiply_all(now, w.inputs, inputs.of(now), first, end, add, ahead, own.unpacked.get(), place);
      for (int tile = first; tile < end; ++tile) finish(pair, tile, place(tile));
    }, own, thread);
  }

  // A few pairs times all tiles of packed inputs, two tiles at a time; then(pair, tile, count) when these are done.
  template <class To, class Then>
  void many_tiles(const Matrix &w, const Inputs &inputs, int first, int pairs, int tiles, bool add, const To &to, Own &own,
                  const Then &then) {
    std::vector<Rows> &rows = own.rows;
    for (int i = 0; i < pairs; ++i) rows[i] = whole_rows(w.pair(first + i), w.inputs, own.unpacked.get() + i * w.inputs * 2 * kLanes);
    for (int tile = 0; tile < tiles; tile += 2) {
      const int count = std::min(2, tiles - tile);
      for (int i = 0; i < pairs; ++i) {
        const Pair pair = w.pair(first + i);
        float *c = to(first + i, tile), *d = count == 2 ? to(first + i, tile + 1) : c;
        const bool fetches = tile == 0 && i + 1 < pairs && w.pair(first + i + 1).is_plain();
        multiply_tiles(rows[i], w.inputs, inputs.of(pair) + size(tile, w.inputs), count,
                       {{c, c + kTile, d, d + kTile}, add}, fetches ? rows[i + 1] : Rows{});
        then(first + i, tile, count);
      }
    }
  }

  Inputs ordered(const Matrix &w, const uint16_t *packed, int tiles, Own &own, int thread);
  const uint16_t *embedding(const QkSpan &span, int64_t token, Own &own) const;
  void embed(int tile, Own &own);
  void gather(int tile);
  const uint16_t *normalised(const Tiles &tiles, const float *x, const void *weight, Own &own, int thread);
  void low_rank(const Tiles &tiles, int layer, int part, const uint16_t *packed, int64_t inputs, Own &own, int thread);
  void add_low_rank(const Tiles &tiles, int layer, int part, int tile, int64_t row, float *c) const;
  void add_residual(const Tiles &tiles, const Matrix &w, int layer, int part, const uint16_t *packed, float *x, Own &own,
                    int thread);
  void attention(const QkLayer &layer, int number, Own &own, int thread);
  void heads(const QkLayer &layer, int number, const uint16_t *packed, Own &own, int thread);
  void place(const QkLayer &layer, int number, int head, int tile, float *x);
  void place_query(int head, int tile, const float *x);
  void place_key(const PageBlock &block, const Run &run, const float *x, const Levels &l) const;
  void place_values(int number, int kv_head, int tile, const float *x) const;
  void attend(const QkLayer &layer, int number, const Group &group, int kv_head, Own &own);
  template <bool kInt8>
  void read_chunk(int number, const Group &group, int kv_head, Chunk &chunk, Own &own) const;
  void finish_tokens(const Group &group, int head, const Progress &p);
  void finish_heads(const Group &group, int head, int count, const Progress &p);
  void feed_forward(const QkLayer &layer, int number, const Tiles &tiles, float *x, Own &own, int thread);
  void output(const float *x, Own &own, int thread);
  void head(const QkMatrix &table, const uint16_t *packed, Own &own, int thread);
  void write_logits(int pair, int tile, uint16_t lanes, const float *c) const;
  void write_hidden(const float *x, int tile) const;

  const Forward &f_;
  const QkModel &m_;
  const Plan plan_;
  Barrier barrier_;
  std::vector<std::atomic<int>> counters_;
  const int64_t heads_;  // numbers of all query heads of a token
  Buffer<float> x_, wanted_x_;
  Buffer<uint16_t> normed_, attended_, inner_, ordered_, low_rank_;
  Buffer<uint16_t> queries_;  // (token, head, i)
  Buffer<float> cos_, sin_;   // (tile, i, token)
  std::vector<std::unique_ptr<Own>> own_;
};

}  // namespace
}  // namespace qk
