// Attention from one new cell of each image to its text and to the cells it sees: what a step of
// `CachedDecoder` does in each layer, in one pass over the cache. See cell_attention.py.
//
// At every step most of the cache is read once, so memory decides: with all that is read of one
// head, the same of the next is fetched. Sums are in float32 (of float64 in float64), and what an
// image gets does not depend on its company.
//
// How products are made is a `Way`: by vectors (cell_attention.cpp) or tiles (tiled_attention.cpp).
#pragma once

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <limits>

namespace {

constexpr int TOGETHER = 8;      // images of one text that share a pass over it
constexpr int MOST_WIDTH = 256;  // of a head
constexpr int MOST_SEEN = 512;   // positions of text and cells
constexpr int APART = LANES;     // keeps rows off powers of two, which caches dislike
constexpr int WIDTH_STRIDE = MOST_WIDTH + APART, SEEN_STRIDE = MOST_SEEN + APART;

// As in cell_attention.py.
struct Group {
  int32_t text;
  int32_t before;  // images in the groups before it
  int32_t count;   // of images, 1 ... TOGETHER
  int32_t images[TOGETHER];
};

// As in cell_attention.py. H heads of width D, texts of T, caches of N blocks of S slots. A group's
// part of a cache is [N, H, count, S, D], so that all that it reads at a step is one piece.
struct Step {
  int64_t heads, width, text_length, blocks, slots;
  int64_t block, slot;  // where the new cell is kept
  int64_t seen;         // number of visible slots of the block
  int64_t groups;
  const int32_t* visible;   // [seen], slots, the new cell's among them
  const Group* group;       // [groups]
  const void* projected;    // [B, 3, H, D], query, key and value of the new cells
  void* keys;               // those of the groups, one after the other
  void* values;             // the same
  const void* text_keys;    // of a prompt and head what its way multiplies with: D rows, T columns
  const void* text_values;  // the same, T rows, D columns
  void* contexts;           // [B, H, D], the result
};

// How the cells that some images see lie in a cache, in one head.
struct Cells {
  const int32_t* visible;  // [seen], slots
  int64_t seen, width;
  int64_t next_image, next_head;  // how far away the same of these is
};

// Adds to the scores of the cells of IMAGES images: products of queries and keys over BLOCKS blocks.
// Several images at once, as memory gives more from several places than from one.
template <class Way, int IMAGES, int BLOCKS>
INLINE void score_blocks(const Cells& cells, const typename Way::Query* queries,
                         const typename Way::Element* keys,
                         Number<typename Way::Element>* scores) {
  typename Way::Wanted wanted[IMAGES][BLOCKS];
  for (int image = 0; image < IMAGES; image++)
    for (int b = 0; b < BLOCKS; b++)
      wanted[image][b] = Way::wanted(queries + image * WIDTH_STRIDE + b * BLOCK);
  for (int64_t cell = 0; cell < cells.seen; cell++) {
    const typename Way::Element* key = keys + cells.visible[cell] * cells.width;
    for (int image = 0; image < IMAGES; image++, key += cells.next_image) {
      fetch(key + cells.next_head, BLOCKS * BLOCK);
      typename Way::Total total = {};
      for (int b = 0; b < BLOCKS; b++) Way::add_products(total, wanted[image][b], key + b * BLOCK);
      scores[image * SEEN_STRIDE + cell] += Way::sum_of(total);
    }
  }
}

template <class Way, int IMAGES>
INLINE void score_cells(const Cells& cells, const typename Way::Query* queries,
                        const typename Way::Element* keys,
                        Number<typename Way::Element>* scores) {
  for (int image = 0; image < IMAGES; image++)
    std::fill_n(scores + image * SEEN_STRIDE, cells.seen, Number<typename Way::Element>(0));
  int64_t d = 0;
  for (; d + 4 * BLOCK <= cells.width; d += 4 * BLOCK)
    score_blocks<Way, IMAGES, 4>(cells, queries + d, keys + d, scores);
  for (; d < cells.width; d += BLOCK)
    score_blocks<Way, IMAGES, 1>(cells, queries + d, keys + d, scores);
}

// Scores times `scale`, which is above 0, to weights, in place, and their sum. There must be room up
// to the next multiple of LANES.
template <class N> INLINE N exponentials(N* scores, int64_t count, N scale) {
  const int64_t padded = (count + LANES - 1) / LANES * LANES;
  std::fill(scores + count, scores + padded, -std::numeric_limits<N>::infinity());
  Vector<N> most = read<Vector<N>>(scores);
  for (int64_t i = LANES; i < padded; i += LANES) {
    const Vector<N> next = read<Vector<N>>(scores + i);
    most = next > most ? next : most;
  }
  const N top = largest<N>(most);
  Vector<N> total = {};
  for (int64_t i = 0; i < padded; i += LANES) {
    const Vector<N> power = exponential((read<Vector<N>>(scores + i) - top) * scale);
    write(scores + i, power);
    total += power;
  }
  return sum<N>(total);
}

// Adds to parts of the contexts of IMAGES images, BLOCKS blocks wide, what values of cells give to
// them.
template <class Element, int IMAGES, int BLOCKS>
INLINE void weigh_blocks(const Cells& cells, const Number<Element>* weights, const Element* values,
                         Number<Element>* contexts) {
  Block<Element> total[IMAGES][BLOCKS];
  for (int image = 0; image < IMAGES; image++)
    for (int b = 0; b < BLOCKS; b++)
      total[image][b] = read_block<Element>(contexts + image * WIDTH_STRIDE + b * BLOCK);
  for (int64_t cell = 0; cell < cells.seen; cell++) {
    const Element* value = values + cells.visible[cell] * cells.width;
    for (int image = 0; image < IMAGES; image++, value += cells.next_image) {
      fetch(value + cells.next_head, BLOCKS * BLOCK);
      const Number<Element> weight = weights[image * SEEN_STRIDE + cell];
      for (int b = 0; b < BLOCKS; b++) {
        const Block<Element> block = load(value + b * BLOCK);
        for (int h = 0; h < 2; h++) total[image][b].half[h] += weight * block.half[h];
      }
    }
  }
  for (int image = 0; image < IMAGES; image++)
    for (int b = 0; b < BLOCKS; b++)
      write_block<Element>(contexts + image * WIDTH_STRIDE + b * BLOCK, total[image][b]);
}

template <class Element, int IMAGES>
INLINE void weigh_cells(const Cells& cells, const Number<Element>* weights, const Element* values,
                        Number<Element>* contexts) {
  int64_t d = 0;
  for (; d + 4 * BLOCK <= cells.width; d += 4 * BLOCK)
    weigh_blocks<Element, IMAGES, 4>(cells, weights, values + d, contexts + d);
  for (; d < cells.width; d += BLOCK)
    weigh_blocks<Element, IMAGES, 1>(cells, weights, values + d, contexts + d);
}

// `count` images of a group, at most ROWS, from number `first` on, in one head: stores their new
// cells, and attends from them. Contexts are kept in the order of `Block`.
template <class Way, int ROWS>
INLINE void attend_rows(const Step& step, const Group& group, int64_t first, int64_t count,
                        int64_t head) {
  typedef typename Way::Element Element;
  typedef Number<Element> N;
  const int64_t width = step.width, hidden = step.heads * width, length = step.text_length;
  const int64_t cache = step.slots * width;  // of one image in one head
  const Cells cells{step.visible, step.seen, width, cache, group.count * cache};
  const int64_t of_group = group.before * step.blocks * step.heads * cache;
  const int64_t of_first =
      of_group + ((step.block * step.heads + head) * group.count + first) * cache;
  const int64_t of_text = (group.text * step.heads + head) * length * width;
  Element* keys = (Element*)step.keys + of_first;
  Element* values = (Element*)step.values + of_first;
  const int32_t* images = group.images + first;
  alignas(64) typename Way::Query queries[ROWS * WIDTH_STRIDE];
  alignas(64) N contexts[ROWS * WIDTH_STRIDE], scores[ROWS * SEEN_STRIDE];
  N totals[ROWS];  // of weights

  for (int64_t row = 0; row < count; row++) {
    const Element* query =
        (const Element*)step.projected + images[row] * 3 * hidden + head * width;
    const int64_t cell = row * cache + step.slot * width;
    for (int64_t d = 0; d < width; d += BLOCK) {
      Way::put_query(queries + row * WIDTH_STRIDE + d, query + d);
      copy(keys + cell + d, query + hidden + d);
      copy(values + cell + d, query + 2 * hidden + d);
    }
  }

  Way::template score_text<ROWS>(queries, (const Element*)step.text_keys + of_text, width, length,
                                 scores);
  N* of_cells = scores + length;
  int64_t row = 0;
  for (; row + 4 <= count; row += 4)
    score_cells<Way, 4>(cells, queries + row * WIDTH_STRIDE, keys + row * cache,
                        of_cells + row * SEEN_STRIDE);
  for (; row < count; row++)
    score_cells<Way, 1>(cells, queries + row * WIDTH_STRIDE, keys + row * cache,
                        of_cells + row * SEEN_STRIDE);
  const N scale = 1 / std::sqrt(N(width));
  for (row = 0; row < count; row++)
    totals[row] = exponentials(scores + row * SEEN_STRIDE, length + step.seen, scale);
  Way::template weigh_text<ROWS>(scores, (const Element*)step.text_values + of_text, length, width,
                                 contexts);

  for (row = 0; row + 2 <= count; row += 2)
    weigh_cells<Element, 2>(cells, of_cells + row * SEEN_STRIDE, values + row * cache,
                            contexts + row * WIDTH_STRIDE);
  for (; row < count; row++)
    weigh_cells<Element, 1>(cells, of_cells + row * SEEN_STRIDE, values + row * cache,
                            contexts + row * WIDTH_STRIDE);

  for (row = 0; row < count; row++) {
    Element* result = (Element*)step.contexts + images[row] * hidden + head * width;
    for (int64_t d = 0; d < width; d += BLOCK) {
      const Block<Element> context = read_block<Element>(contexts + row * WIDTH_STRIDE + d);
      store(result + d, scaled(context, 1 / totals[row]));
    }
  }
}

}  // namespace
