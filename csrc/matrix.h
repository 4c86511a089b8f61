// What follows from the shape of a linear layer, whatever computes it.
#pragma once
#include <algorithm>

#include "native.h"

namespace qk {
namespace {

inline bool in_panels(const QkMatrix &m) { return m.format == QK_PANEL4 || m.format == QK_PANEL8; }

inline bool in_panels(const QkLinear &l) { return std::any_of(l.part, l.part + l.parts, [](const QkMatrix &m) { return in_panels(m); }); }

// Inputs that share a scale of rounded activations. Twice as many would be faster with larger groups of weights, and cost
// half a percent of perplexity.
constexpr int64_t kUnit = 32;

inline int64_t groups_of(const QkMatrix &m, int64_t n) { return (n + m.group - 1) / m.group; }

// The part that holds a row of the layer; the row becomes the part's.
inline const QkMatrix &part_of(const QkLinear &l, int64_t &row) {
  const QkMatrix *part = l.part;
  while (row >= part->rows) row -= part++->rows;
  return *part;
}

// The number of the first part with the order of this one.
inline int first_alike(const QkLinear &l, const QkMatrix &part) {
  int i = 0;
  while (l.part[i].order != part.order) ++i;
  return i;
}

// The number of the first part in panels that takes the same rounded activations.
inline int first_rounded_alike(const QkLinear &l, const QkMatrix &part) {
  int i = 0;
  while (!in_panels(l.part[i]) || l.part[i].order != part.order) ++i;
  return i;
}

inline bool has_order(const QkLinear &l) {
  return std::any_of(l.part, l.part + l.parts, [](const QkMatrix &m) { return m.order != nullptr; });
}

// A layer that is one matrix without bias.
inline QkLinear alone(const QkMatrix &m) { return {1, &m, nullptr}; }

// Parts of the layer with the most that are in panels, and whether there are any at all.
inline int most_panels(const QkModel &m) {
  int most = in_panels(m.head) ? 1 : 0;
  for (int i = 0; i < m.layers; ++i)
    for (const QkLinear *l : {&m.layer[i].qkv, &m.layer[i].out, &m.layer[i].gate_up, &m.layer[i].down})
      if (in_panels(*l)) most = std::max(most, l->parts);
  return most;
}

// Numbers that activations of one token need to stand in all orders of any layer.
inline int64_t most_ordered(const QkModel &m) {
  int64_t most = 0;
  const auto look = [&](const QkLinear &l, int64_t n) {
    if (has_order(l)) most = std::max(most, l.parts * n);
  };
  for (int i = 0; i < m.layers; ++i) {
    const QkLayer &l = m.layer[i];
    look(l.qkv, m.hidden), look(l.out, int64_t{m.heads} * m.head_dim), look(l.gate_up, m.hidden), look(l.down, m.ffn);
  }
  look(alone(m.head), m.hidden);
  return most;
}

}  // namespace
}  // namespace qk
