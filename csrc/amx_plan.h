// How one call's tokens lie in tiles of sixteen, what of them goes together, and which rows have adapters.
#pragma once
#include <algorithm>
#include <vector>

#include "amx_cache.h"
#include "step.h"

namespace qk {
namespace {

// Queries of neighbouring tokens of one span: `count` lanes of a tile from `lane` on.
struct Group {
  const QkSpan *span;
  int tile, lane, count;
  int64_t position;
  bool by_token;  // one token with all heads of a key head in the tile's rows, else one head of several tokens
};

// The low-rank part that some lanes of a tile have; t is where its activations go, in packed numbers.
struct LowRank {
  const QkAdapter *adapter;
  int tile;
  uint16_t lanes;
  int64_t t;
};

// Tokens in tiles: all of a call, or those whose logits are wanted.
struct Tiles {
  int tokens = 0, count = 0;
  std::vector<const QkSpan *> spans;  // per lane, null: empty
  std::vector<LowRank> low_rank;
  int64_t low_rank_size = 0;

  void add(const QkSpan *span) {
    spans.push_back(span);
    count = (++tokens + kLanes - 1) / kLanes;
  }

  void finish(int layers) {
    spans.resize(static_cast<size_t>(count) * kLanes);
    for (int i = 0; i < tokens; ++i) {
      const QkAdapter *adapter = spans[i]->adapter;
      if (!adapter || !adapter->lora) continue;
      const int tile = i / kLanes;
      const uint16_t lane = lane_mask(i % kLanes, 1);
      const auto known = std::find_if(low_rank.begin(), low_rank.end(), [&](const LowRank &l) {
        return l.tile == tile && l.adapter == adapter;
      });
      if (known != low_rank.end()) {
        known->lanes |= lane;
        continue;
      }
      int rank = 0;
      for (int l = 0; l < layers * 4; ++l) rank = std::max(rank, adapter->lora[l].rank);
      low_rank.push_back({adapter, tile, lane, low_rank_size});
      low_rank_size += (rank + kDepth - 1) / kDepth * kDepth * kLanes;
    }
  }

  uint16_t lanes_with(int tile, const void *table, const void *QkAdapter::*member, const void *own) const {
    uint16_t lanes = 0;
    for (int lane = 0; lane < kLanes; ++lane) {
      const QkSpan *span = spans[tile * kLanes + lane];
      if (!span) continue;
      const void *used = span->adapter ? span->adapter->*member : nullptr;
      if ((used ? used : own) == table) lanes |= lane_mask(lane, 1);
    }
    return lanes;
  }
};

// What follows from the spans alone. Built before anything is computed; needs memory.
struct Plan {
  Tiles all, wanted;
  bool gathers;  // `wanted` differs from `all`
  std::vector<Group> groups;
  std::vector<std::vector<Run>> runs;  // per tile
  std::vector<const void *> heads;     // the numbers of the different output tables in use
  std::vector<int64_t> offsets;        // per token, its number in its span

  explicit Plan(const Forward &f) {
    const QkModel &m = *f.model;
    for (int s = 0; s < f.num_spans; ++s)
      for (int64_t i = 0; i < f.spans[s].count; ++i) {
        all.add(f.spans + s);
        offsets.push_back(i);
      }
    all.finish(m.layers);
    runs.resize(all.count);
    int token = 0;
    for (int s = 0; s < f.num_spans; ++s) {
      place(f.spans[s], token, m.heads / m.kv_heads);
      token += static_cast<int>(f.spans[s].count);
    }
    gathers = f.num_rows != f.total;
    for (int r = 0; r < f.num_rows; ++r) {
      wanted.add(all.spans[f.rows[r]]);
      gathers |= f.rows[r] != r;
      const QkSpan *span = wanted.spans.back();
      const void *head = span->adapter && span->adapter->head ? span->adapter->head : m.head.data;
      if (std::find(heads.begin(), heads.end(), head) == heads.end()) heads.push_back(head);
    }
    wanted.finish(m.layers);
    // The longest first, so that no thread is left with one at the end.
    std::stable_sort(groups.begin(), groups.end(),
                     [](const Group &a, const Group &b) { return a.position + a.count > b.position + b.count; });
  }

 private:
  void place(const QkSpan &span, int token, int heads) {
    for (int64_t done = 0; done < span.count;) {
      const int tile = (token + done) / kLanes, lane = (token + done) % kLanes;
      const int count = static_cast<int>(std::min<int64_t>(kLanes - lane, span.count - done));
      const int64_t position = span.length + done;
      if (count > heads) {
        groups.push_back({&span, tile, lane, count, position, false});
      } else {
        for (int i = 0; i < count; ++i) groups.push_back({&span, tile, lane + i, 1, position + i, true});
      }
      for (int i = 0; i < count;) {
        const int64_t page = span.pages[(position + i) / QK_PAGE];
        const int slot = static_cast<int>((position + i) % QK_PAGE), number = std::min(count - i, QK_PAGE - slot);
        runs[tile].push_back({lane + i, number, slot, done + i + number == span.count, page});
        i += number;
      }
      done += count;
    }
  }
};

}  // namespace
}  // namespace qk
