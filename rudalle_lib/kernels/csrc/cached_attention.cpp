// Attention from a new cell with vector products, for every dtype. See cached_attention.h.

#include "vectors.h"

#include "abi.h"
#include "cached_attention.h"

namespace {

// Rows [ROWS, inner] times a blocked matrix [columns / BLOCK, inner, BLOCK].
template <class Element, int ROWS, int STRIDE, int PRODUCT_STRIDE>
INLINE void multiply(const Scalar<Element>* rows, const Element* matrix, int64_t inner,
                     int64_t columns, Scalar<Element>* products) {
  for (int64_t column = 0; column < columns; column += BLOCK) {
    Block<Element> total[ROWS] = {};
    for (int64_t i = 0; i < inner; i++, matrix += BLOCK) {
      const Block<Element> block = load(matrix);
      for (int row = 0; row < ROWS; row++)
        for (int h = 0; h < 2; h++) total[row].half[h] += rows[row * STRIDE + i] * block.half[h];
      prefetch(matrix + inner * columns, BLOCK);  // of the next head
    }
    for (int row = 0; row < ROWS; row++)
      store_acc<Element>(products + row * PRODUCT_STRIDE + column, total[row]);
  }
}

// Queries are stored in the accumulation type, in the order of `Block`.
template <class E> struct VectorBackend {
  typedef E Element;
  typedef Scalar<E> Query;
  typedef Block<E> QueryBlock, Partial;

  static INLINE void store_query(Query* to, const E* from) { store_acc<E>(to, load(from)); }

  static INLINE QueryBlock load_query(const Query* query) { return load_acc<E>(query); }

  static INLINE void multiply_add(Partial& total, const QueryBlock& query, const E* key) {
    const Block<E> block = load(key);
    for (int h = 0; h < 2; h++) total.half[h] += query.half[h] * block.half[h];
  }

  static INLINE Scalar<E> reduce(const Partial& total) {
    return reduce_sum<Scalar<E>>(total.half[0] + total.half[1]);
  }

  template <int ROWS>
  static INLINE void score_text(const Query* queries, const E* keys, int64_t width, int64_t length,
                                Scalar<E>* scores) {
    multiply<E, ROWS, WIDTH_STRIDE, SCORE_STRIDE>(queries, keys, width, length, scores);
  }

  template <int ROWS>
  static INLINE void weight_text_values(const Scalar<E>* weights, const E* values, int64_t length,
                                        int64_t width, Scalar<E>* contexts) {
    multiply<E, ROWS, SCORE_STRIDE, WIDTH_STRIDE>(weights, values, length, width, contexts);
  }
};

// One task is one group of images in one head.
template <class E> INLINE void attend_group(const AttentionArgs& args, int64_t task) {
  const ImageGroup& group = args.groups[task / args.heads];
  const int64_t head = task % args.heads;
  int64_t first = 0;
  for (; first + 8 <= group.num_images; first += 8)
    attend_rows<VectorBackend<E>, 8>(args, group, first, 8, head);
  for (; first + 4 <= group.num_images; first += 4)
    attend_rows<VectorBackend<E>, 4>(args, group, first, 4, head);
  for (; first < group.num_images; first += 1)
    attend_rows<VectorBackend<E>, 1>(args, group, first, 1, head);
}

MULTIVERSIONED void attend_float32(const AttentionArgs& args, int64_t task) {
  attend_group<float>(args, task);
}

MULTIVERSIONED void attend_float64(const AttentionArgs& args, int64_t task) {
  attend_group<double>(args, task);
}

MULTIVERSIONED void attend_bfloat16(const AttentionArgs& args, int64_t task) {
  attend_group<BFloat16>(args, task);
}

// With the static schedule each thread runs consecutive tasks and so uses its own prefetches.
void attend_all(void (*attend)(const AttentionArgs&, int64_t), const AttentionArgs& args,
                int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t task = 0; task < args.num_groups * args.heads; task++) attend(args, task);
}

}  // namespace

EXPORT_SIZE(ImageGroup)
EXPORT_SIZE(AttentionArgs)
EXPORT_CONSTANT(BLOCK)
EXPORT_CONSTANT(MAX_GROUP)
EXPORT_CONSTANT(MAX_HEAD_WIDTH)
EXPORT_CONSTANT(MAX_CONTEXT)

extern "C" {

void cached_attention_float32(const AttentionArgs* args, int threads) {
  attend_all(attend_float32, *args, threads);
}

void cached_attention_float64(const AttentionArgs* args, int threads) {
  attend_all(attend_float64, *args, threads);
}

void cached_attention_bfloat16(const AttentionArgs* args, int threads) {
  attend_all(attend_bfloat16, *args, threads);
}
}
