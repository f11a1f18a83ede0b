// Attention from a cell whose products are made by vectors, in any type. See cell_attention.h.

#include "vectors.h"

#include "cell_attention.h"

namespace {

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

// Queries are kept in the numbers that are computed with, in the order of `Block`.
template <class E> struct ByVectors {
  typedef E Element;
  typedef Number<E> Query;
  typedef Block<E> Wanted, Total;

  static INLINE void put_query(Query* to, const E* from) { write_block<E>(to, load(from)); }

  static INLINE Wanted wanted(const Query* query) { return read_block<E>(query); }

  static INLINE void add_products(Total& total, const Wanted& wanted, const E* key) {
    const Block<E> block = load(key);
    for (int h = 0; h < 2; h++) total.half[h] += wanted.half[h] * block.half[h];
  }

  static INLINE Number<E> sum_of(const Total& total) {
    return sum<Number<E>>(total.half[0] + total.half[1]);
  }

  template <int ROWS>
  static INLINE void score_text(const Query* queries, const E* keys, int64_t width, int64_t length,
                                Number<E>* scores) {
    multiply<E, ROWS, WIDTH_STRIDE, SEEN_STRIDE>(queries, keys, width, length, scores);
  }

  template <int ROWS>
  static INLINE void weigh_text(const Number<E>* weights, const E* values, int64_t length,
                                int64_t width, Number<E>* contexts) {
    multiply<E, ROWS, SEEN_STRIDE, WIDTH_STRIDE>(weights, values, length, width, contexts);
  }
};

// A task is a group in one head.
template <class E> INLINE void attend_group(const Step& step, int64_t task) {
  const Group& group = step.group[task / step.heads];
  const int64_t head = task % step.heads;
  int64_t first = 0;
  for (; first + 8 <= group.count; first += 8)
    attend_rows<ByVectors<E>, 8>(step, group, first, 8, head);
  for (; first + 4 <= group.count; first += 4)
    attend_rows<ByVectors<E>, 4>(step, group, first, 4, head);
  for (; first < group.count; first += 1)
    attend_rows<ByVectors<E>, 1>(step, group, first, 1, head);
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
