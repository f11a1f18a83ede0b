// Layer norm of rows, and what it is added to, in one pass. See compiled_layer_norm.py.

#include <omp.h>

#include <cmath>

#include "vectors.h"

namespace {

// As in compiled_layer_norm.py. `added` may be null.
struct Norm {
  int64_t rows, width;
  double epsilon;
  const void* input;   // [rows, width]
  const void* weight;  // [width]
  const void* bias;    // [width]
  const void* added;   // [rows, width]
  void* output;        // [rows, width]
};

template <class Element> INLINE void normalise_row(const Norm& norm, int64_t row) {
  typedef Number<Element> N;
  const Element* input = (const Element*)norm.input + row * norm.width;
  const Element* added = norm.added ? (const Element*)norm.added + row * norm.width : nullptr;
  const Element* weight = (const Element*)norm.weight;
  const Element* bias = (const Element*)norm.bias;
  Element* output = (Element*)norm.output + row * norm.width;

  Block<Element> total = {};
  for (int64_t i = 0; i < norm.width; i += BLOCK) {
    const Block<Element> block = load(input + i);
    for (int h = 0; h < 2; h++) total.half[h] += block.half[h];
  }
  const N mean = sum<N>(total.half[0] + total.half[1]) / norm.width;
  total = {};
  for (int64_t i = 0; i < norm.width; i += BLOCK) {
    const Block<Element> block = load(input + i);
    for (int h = 0; h < 2; h++) total.half[h] += (block.half[h] - mean) * (block.half[h] - mean);
  }
  const N variance = sum<N>(total.half[0] + total.half[1]) / norm.width;
  const N scale = 1 / std::sqrt(variance + N(norm.epsilon));
  for (int64_t i = 0; i < norm.width; i += BLOCK) {
    Block<Element> block = load(input + i);
    const Block<Element> gain = load(weight + i), shift = load(bias + i);
    for (int h = 0; h < 2; h++)
      block.half[h] = (block.half[h] - mean) * scale * gain.half[h] + shift.half[h];
    if (added) {
      const Block<Element> other = load(added + i);
      for (int h = 0; h < 2; h++) block.half[h] += other.half[h];
    }
    store(output + i, block);
  }
}

FOR_EACH_PROCESSOR void normalise_float32(const Norm& norm, int64_t row) {
  normalise_row<float>(norm, row);
}

FOR_EACH_PROCESSOR void normalise_float64(const Norm& norm, int64_t row) {
  normalise_row<double>(norm, row);
}

FOR_EACH_PROCESSOR void normalise_bfloat16(const Norm& norm, int64_t row) {
  normalise_row<BFloat16>(norm, row);
}

void normalise_all(void (*normalise)(const Norm&, int64_t), const Norm& norm, int threads) {
#pragma omp parallel for num_threads(threads)
  for (int64_t row = 0; row < norm.rows; row++) normalise(norm, row);
}

}  // namespace

extern "C" {

void layer_norm_float32(const Norm* norm, int threads) {
  normalise_all(normalise_float32, *norm, threads);
}

void layer_norm_float64(const Norm* norm, int threads) {
  normalise_all(normalise_float64, *norm, threads);
}

void layer_norm_bfloat16(const Norm* norm, int threads) {
  normalise_all(normalise_bfloat16, *norm, threads);
}
}
