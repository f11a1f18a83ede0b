// Attention from one new cell of each image to its text and to its visible cells: the attention of
// one layer in a step of `CachedDecoder`, in one pass over the cache. See native_cache.py.
//
// A step reads most of the cache once, so it is bound by memory bandwidth: while one head is read,
// the same part of the next head is prefetched. Sums are in float32 (float64 for float64). Results
// are batch-invariant.
//
// A `Backend` makes the products: with vectors (cached_attention.cpp) or tiles (amx_attention.cpp).
#pragma once

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <limits>

namespace {

constexpr int MAX_GROUP = 8;  // images of one prompt that share a pass over its text
constexpr int MAX_HEAD_WIDTH = 256;
constexpr int MAX_CONTEXT = 512;  // text positions plus visible cells
constexpr int PADDING = LANES;    // avoids power-of-two row strides, which cause cache conflicts
constexpr int WIDTH_STRIDE = MAX_HEAD_WIDTH + PADDING, SCORE_STRIDE = MAX_CONTEXT + PADDING;

// Images of a batch with the same prompt. Mirrored in abi.py.
struct ImageGroup {
  int32_t prompt;
  int32_t images_before;  // number of images in all earlier groups
  int32_t num_images;     // 1 ... MAX_GROUP
  int32_t images[MAX_GROUP];
};

// Mirrored in abi.py. H heads of width D, texts of length T, caches of N blocks of S slots. The
// cache of a group of G images is [N, H, G, S, D], so one step reads contiguous memory.
struct AttentionArgs {
  int64_t heads, head_width, text_length, num_blocks, block_size;
  int64_t block, slot;  // where the new cell is stored
  int64_t num_visible;  // visible slots of the block
  int64_t num_groups;
  const int32_t* visible;    // [num_visible]: slots, including that of the new cell
  const ImageGroup* groups;  // [num_groups]
  const void* projected;     // [B, 3, H, D]: query, key and value of the new cells
  void* keys;                // the caches of all groups, one after another
  void* values;              // the same
  const void* text_keys;     // per prompt and head a D x T matrix in the layout of the backend
  const void* text_values;   // per prompt and head a T x D matrix in the layout of the backend
  void* contexts;            // [B, H, D]: the output
};

// Memory layout of the visible cells of several images in one head.
struct CellLayout {
  const int32_t* visible;  // [num_visible]: slots
  int64_t num_visible, width;
  int64_t image_stride, head_stride;  // elements to the same slot of the next image or head
};

// Adds the products of queries and keys over BLOCKS blocks to the cell scores of IMAGES images.
// Reading several streams concurrently gets more memory bandwidth than reading one.
template <class Backend, int IMAGES, int BLOCKS>
INLINE void score_blocks(const CellLayout& cells, const typename Backend::Query* queries,
                         const typename Backend::Element* keys,
                         Scalar<typename Backend::Element>* scores) {
  typename Backend::QueryBlock query[IMAGES][BLOCKS];
  for (int image = 0; image < IMAGES; image++)
    for (int b = 0; b < BLOCKS; b++)
      query[image][b] = Backend::load_query(queries + image * WIDTH_STRIDE + b * BLOCK);
  for (int64_t cell = 0; cell < cells.num_visible; cell++) {
    const typename Backend::Element* key = keys + cells.visible[cell] * cells.width;
    for (int image = 0; image < IMAGES; image++, key += cells.image_stride) {
      prefetch(key + cells.head_stride, BLOCKS * BLOCK);
      typename Backend::Partial total = {};
      for (int b = 0; b < BLOCKS; b++)
        Backend::multiply_add(total, query[image][b], key + b * BLOCK);
      scores[image * SCORE_STRIDE + cell] += Backend::reduce(total);
    }
  }
}

template <class Backend, int IMAGES>
INLINE void score_cells(const CellLayout& cells, const typename Backend::Query* queries,
                        const typename Backend::Element* keys,
                        Scalar<typename Backend::Element>* scores) {
  typedef Scalar<typename Backend::Element> N;
  for (int image = 0; image < IMAGES; image++)
    std::fill_n(scores + image * SCORE_STRIDE, cells.num_visible, N(0));
  int64_t d = 0;
  for (; d + 4 * BLOCK <= cells.width; d += 4 * BLOCK)
    score_blocks<Backend, IMAGES, 4>(cells, queries + d, keys + d, scores);
  for (; d < cells.width; d += BLOCK)
    score_blocks<Backend, IMAGES, 1>(cells, queries + d, keys + d, scores);
}

// Softmax without the division: replaces scores by exp((score - max) * scale) and returns their
// sum. `scale` must be positive. `scores` needs capacity up to the next multiple of LANES.
template <class N> INLINE N exp_in_place(N* scores, int64_t count, N scale) {
  const int64_t padded = (count + LANES - 1) / LANES * LANES;
  std::fill(scores + count, scores + padded, -std::numeric_limits<N>::infinity());
  Vector<N> max = loadu<Vector<N>>(scores);
  for (int64_t i = LANES; i < padded; i += LANES) {
    const Vector<N> next = loadu<Vector<N>>(scores + i);
    max = next > max ? next : max;
  }
  const N top = reduce_max<N>(max);
  Vector<N> total = {};
  for (int64_t i = 0; i < padded; i += LANES) {
    const Vector<N> power = exponential((loadu<Vector<N>>(scores + i) - top) * scale);
    storeu(scores + i, power);
    total += power;
  }
  return reduce_sum<N>(total);
}

// Adds the weighted cell values of BLOCKS blocks to the contexts of IMAGES images.
template <class Element, int IMAGES, int BLOCKS>
INLINE void weight_value_blocks(const CellLayout& cells, const Scalar<Element>* weights,
                                const Element* values, Scalar<Element>* contexts) {
  Block<Element> total[IMAGES][BLOCKS];
  for (int image = 0; image < IMAGES; image++)
    for (int b = 0; b < BLOCKS; b++)
      total[image][b] = load_acc<Element>(contexts + image * WIDTH_STRIDE + b * BLOCK);
  for (int64_t cell = 0; cell < cells.num_visible; cell++) {
    const Element* value = values + cells.visible[cell] * cells.width;
    for (int image = 0; image < IMAGES; image++, value += cells.image_stride) {
      prefetch(value + cells.head_stride, BLOCKS * BLOCK);
      const Scalar<Element> weight = weights[image * SCORE_STRIDE + cell];
      for (int b = 0; b < BLOCKS; b++) {
        const Block<Element> block = load(value + b * BLOCK);
        for (int h = 0; h < 2; h++) total[image][b].half[h] += weight * block.half[h];
      }
    }
  }
  for (int image = 0; image < IMAGES; image++)
    for (int b = 0; b < BLOCKS; b++)
      store_acc<Element>(contexts + image * WIDTH_STRIDE + b * BLOCK, total[image][b]);
}

template <class Element, int IMAGES>
INLINE void weight_cell_values(const CellLayout& cells, const Scalar<Element>* weights,
                               const Element* values, Scalar<Element>* contexts) {
  int64_t d = 0;
  for (; d + 4 * BLOCK <= cells.width; d += 4 * BLOCK)
    weight_value_blocks<Element, IMAGES, 4>(cells, weights, values + d, contexts + d);
  for (; d < cells.width; d += BLOCK)
    weight_value_blocks<Element, IMAGES, 1>(cells, weights, values + d, contexts + d);
}

// Stores the new cells of images `first` ... `first + count - 1` of a group in one head, and
// attends from them. `count` is at most ROWS. Contexts are kept in the order of `Block`.
template <class Backend, int ROWS>
INLINE void attend_rows(const AttentionArgs& args, const ImageGroup& group, int64_t first,
                        int64_t count, int64_t head) {
  typedef typename Backend::Element Element;
  typedef Scalar<Element> N;
  const int64_t width = args.head_width, hidden = args.heads * width, length = args.text_length;
  const int64_t block_elements = args.block_size * width;  // per image and head
  const CellLayout cells{args.visible, args.num_visible, width, block_elements,
                         group.num_images * block_elements};
  const int64_t group_offset = group.images_before * args.num_blocks * args.heads * block_elements;
  const int64_t cell_offset =
      group_offset +
      ((args.block * args.heads + head) * group.num_images + first) * block_elements;
  const int64_t text_offset = (group.prompt * args.heads + head) * length * width;
  Element* keys = (Element*)args.keys + cell_offset;
  Element* values = (Element*)args.values + cell_offset;
  const int32_t* images = group.images + first;
  alignas(64) typename Backend::Query queries[ROWS * WIDTH_STRIDE];
  alignas(64) N contexts[ROWS * WIDTH_STRIDE], scores[ROWS * SCORE_STRIDE];
  N totals[ROWS];  // sums of weights

  for (int64_t row = 0; row < count; row++) {
    const Element* query =
        (const Element*)args.projected + images[row] * 3 * hidden + head * width;
    const int64_t cell = row * block_elements + args.slot * width;
    for (int64_t d = 0; d < width; d += BLOCK) {
      Backend::store_query(queries + row * WIDTH_STRIDE + d, query + d);
      copy(keys + cell + d, query + hidden + d);
      copy(values + cell + d, query + 2 * hidden + d);
    }
  }

  const Element* text_keys = (const Element*)args.text_keys + text_offset;
  const Element* text_values = (const Element*)args.text_values + text_offset;
  Backend::template score_text<ROWS>(queries, text_keys, width, length, scores);
  N* cell_scores = scores + length;
  int64_t row = 0;
  for (; row + 4 <= count; row += 4)
    score_cells<Backend, 4>(cells, queries + row * WIDTH_STRIDE, keys + row * block_elements,
                            cell_scores + row * SCORE_STRIDE);
  for (; row < count; row++)
    score_cells<Backend, 1>(cells, queries + row * WIDTH_STRIDE, keys + row * block_elements,
                            cell_scores + row * SCORE_STRIDE);
  const N scale = 1 / std::sqrt(N(width));
  for (row = 0; row < count; row++)
    totals[row] = exp_in_place(scores + row * SCORE_STRIDE, length + args.num_visible, scale);
  Backend::template weight_text_values<ROWS>(scores, text_values, length, width, contexts);

  for (row = 0; row + 2 <= count; row += 2)
    weight_cell_values<Element, 2>(cells, cell_scores + row * SCORE_STRIDE,
                                   values + row * block_elements, contexts + row * WIDTH_STRIDE);
  for (; row < count; row++)
    weight_cell_values<Element, 1>(cells, cell_scores + row * SCORE_STRIDE,
                                   values + row * block_elements, contexts + row * WIDTH_STRIDE);

  for (row = 0; row < count; row++) {
    Element* result = (Element*)args.contexts + images[row] * hidden + head * width;
    for (int64_t d = 0; d < width; d += BLOCK) {
      const Block<Element> context = load_acc<Element>(contexts + row * WIDTH_STRIDE + d);
      store(result + d, scaled(context, 1 / totals[row]));
    }
  }
}

}  // namespace
