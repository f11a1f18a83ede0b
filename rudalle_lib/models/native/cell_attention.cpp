// Attention from one new cell of each image to its text and to the cells it sees: what a step of
// `CachedDecoder` does in each layer, in one pass over the cache. See cell_attention.py.
//
// At every step most of the cache is read once, so memory decides: with all that is read of one
// head, the same of the next is fetched. Sums are in float32 (of float64 in float64), and what an
// image gets does not depend on its company.

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "vectors.h"

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
  const void* text_keys;    // [P, H, T / BLOCK, D, BLOCK]
  const void* text_values;  // [P, H, D / BLOCK, T, BLOCK]
  void* contexts;           // [B, H, D], the result
};

// Rows [ROWS, inner] times a matrix in blocks [columns / BLOCK, inner, BLOCK].
template <class Element, int ROWS, int STRIDE, int PRODUCT_STRIDE>
INLINE void multiply(const Number<Element>* rows, const Element* matrix, int64_t inner,
                     int64_t columns, Number<Element>* products) {
  for (int64_t column = 0; column < columns; column += BLOCK) {
    Block<Element> total[ROWS] = {};
    for (int64_t i = 0; i < inner; i++, matrix += BLOCK) {
      const Block<Element> block = load(matrix);
      for (int row = 0; row < ROWS; row++)
        for (int h = 0; h < 2; h++) total[row].half[h] += rows[row * STRIDE + i] * block.half[h];
      fetch(matrix + inner * columns, BLOCK);  // of the next head
    }
    for (int row = 0; row < ROWS; row++)
      write_block<Element>(products + row * PRODUCT_STRIDE + column, total[row]);
  }
}

// Adds to the scores of the cells that one image sees: products of its query with their keys, over
// BLOCKS blocks.
template <class Element, int BLOCKS>
INLINE void score_cells(const Step& step, const Number<Element>* query, const Element* keys,
                        int64_t next_head, Number<Element>* scores) {
  Block<Element> wanted[BLOCKS];
  for (int b = 0; b < BLOCKS; b++) wanted[b] = read_block<Element>(query + b * BLOCK);
  for (int64_t cell = 0; cell < step.seen; cell++) {
    const Element* key = keys + step.visible[cell] * step.width;
    fetch(key + next_head, BLOCKS * BLOCK);
    Block<Element> total = {};
    for (int b = 0; b < BLOCKS; b++) {
      const Block<Element> block = load(key + b * BLOCK);
      for (int h = 0; h < 2; h++) total.half[h] += wanted[b].half[h] * block.half[h];
    }
    scores[cell] += sum<Number<Element>>(total.half[0] + total.half[1]);
  }
}

// Scores to weights, in place, and their sum. There must be room up to the next multiple of LANES.
template <class N> INLINE N exponentials(N* scores, int64_t count) {
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
    const Vector<N> power = exponential(read<Vector<N>>(scores + i) - top);
    write(scores + i, power);
    total += power;
  }
  return sum<N>(total);
}

// Adds to a part of a context, BLOCKS blocks wide, what the values of the cells give to it.
template <class Element, int BLOCKS>
INLINE void add_cells(const Step& step, const Number<Element>* weights, const Element* values,
                      int64_t next_head, Number<Element>* context) {
  Block<Element> total[BLOCKS];
  for (int b = 0; b < BLOCKS; b++) total[b] = read_block<Element>(context + b * BLOCK);
  for (int64_t cell = 0; cell < step.seen; cell++) {
    const Element* value = values + step.visible[cell] * step.width;
    fetch(value + next_head, BLOCKS * BLOCK);
    for (int b = 0; b < BLOCKS; b++) {
      const Block<Element> block = load(value + b * BLOCK);
      for (int h = 0; h < 2; h++) total[b].half[h] += weights[cell] * block.half[h];
    }
  }
  for (int b = 0; b < BLOCKS; b++) write_block<Element>(context + b * BLOCK, total[b]);
}

// ROWS images of a group, from number `first` on, in one head: stores their new cells, and attends
// from them. Queries, weights of a text and contexts are kept in the order of `Block`.
template <class Element, int ROWS>
INLINE void attend_rows(const Step& step, const Group& group, int64_t first, int64_t head) {
  typedef Number<Element> N;
  const int64_t width = step.width, hidden = step.heads * width, length = step.text_length;
  const int64_t cache = step.slots * width;  // of one image in one head
  const int64_t next_head = group.count * cache;
  const int64_t of_group = group.before * step.blocks * step.heads * cache;
  const int64_t of_first =
      of_group + ((step.block * step.heads + head) * group.count + first) * cache;
  const int64_t of_text = (group.text * step.heads + head) * length * width;
  Element* keys = (Element*)step.keys + of_first;
  Element* values = (Element*)step.values + of_first;
  const Element* text_keys = (const Element*)step.text_keys + of_text;
  const Element* text_values = (const Element*)step.text_values + of_text;
  const int32_t* images = group.images + first;
  alignas(64) N queries[ROWS * WIDTH_STRIDE], contexts[ROWS * WIDTH_STRIDE];
  alignas(64) N scores[ROWS * SEEN_STRIDE];
  N totals[ROWS];  // of weights

  const N scale = 1 / std::sqrt(N(width));
  for (int row = 0; row < ROWS; row++) {
    const Element* query =
        (const Element*)step.projected + images[row] * 3 * hidden + head * width;
    const int64_t cell = row * cache + step.slot * width;
    for (int64_t d = 0; d < width; d += BLOCK) {
      const Block<Element> block = load(query + d);
      write_block<Element>(queries + row * WIDTH_STRIDE + d, scaled(block, scale));
      copy(keys + cell + d, query + hidden + d);
      copy(values + cell + d, query + 2 * hidden + d);
    }
  }

  multiply<Element, ROWS, WIDTH_STRIDE, SEEN_STRIDE>(queries, text_keys, width, length, scores);
  for (int row = 0; row < ROWS; row++) {
    const N* query = queries + row * WIDTH_STRIDE;
    const Element* of_row = keys + row * cache;
    N* of_cells = scores + row * SEEN_STRIDE + length;
    std::fill(of_cells, of_cells + step.seen, N(0));
    int64_t d = 0;
    for (; d + 4 * BLOCK <= width; d += 4 * BLOCK)
      score_cells<Element, 4>(step, query + d, of_row + d, next_head, of_cells);
    for (; d < width; d += BLOCK)
      score_cells<Element, 1>(step, query + d, of_row + d, next_head, of_cells);
    totals[row] = exponentials(scores + row * SEEN_STRIDE, length + step.seen);
  }
  multiply<Element, ROWS, SEEN_STRIDE, WIDTH_STRIDE>(scores, text_values, length, width, contexts);

  for (int row = 0; row < ROWS; row++) {
    const N* weights = scores + row * SEEN_STRIDE + length;
    N* context = contexts + row * WIDTH_STRIDE;
    const Element* of_row = values + row * cache;
    Element* result = (Element*)step.contexts + images[row] * hidden + head * width;
    int64_t d = 0;
    for (; d + 4 * BLOCK <= width; d += 4 * BLOCK)
      add_cells<Element, 4>(step, weights, of_row + d, next_head, context + d);
    for (; d < width; d += BLOCK)
      add_cells<Element, 1>(step, weights, of_row + d, next_head, context + d);
    for (d = 0; d < width; d += BLOCK)
      store(result + d, scaled(read_block<Element>(context + d), 1 / totals[row]));
  }
}

// A task is a group in one head.
template <class Element> INLINE void attend_group(const Step& step, int64_t task) {
  const Group& group = step.group[task / step.heads];
  const int64_t head = task % step.heads;
  int64_t first = 0;
  for (; first + 8 <= group.count; first += 8) attend_rows<Element, 8>(step, group, first, head);
  for (; first + 4 <= group.count; first += 4) attend_rows<Element, 4>(step, group, first, head);
  for (; first < group.count; first += 1) attend_rows<Element, 1>(step, group, first, head);
}

FOR_EACH_PROCESSOR void attend_float32(const Step& step, int64_t task) {
  attend_group<float>(step, task);
}

FOR_EACH_PROCESSOR void attend_float64(const Step& step, int64_t task) {
  attend_group<double>(step, task);
}

FOR_EACH_PROCESSOR void attend_bfloat16(const Step& step, int64_t task) {
  attend_group<BFloat16>(step, task);
}

// Each thread does neighbouring tasks, so that it finds what it has fetched.
void attend_all(void (*attend)(const Step&, int64_t), const Step& step, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t task = 0; task < step.groups * step.heads; task++) attend(step, task);
}

}  // namespace

extern "C" {

void attend_from_cell_float32(const Step* step, int threads) {
  attend_all(attend_float32, *step, threads);
}

void attend_from_cell_float64(const Step* step, int threads) {
  attend_all(attend_float64, *step, threads);
}

void attend_from_cell_bfloat16(const Step* step, int threads) {
  attend_all(attend_bfloat16, *step, threads);
}
}
