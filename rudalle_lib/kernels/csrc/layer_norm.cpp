// Layer norm over rows plus an optional residual addition, in one pass. See fused_layer_norm.py.

#include <omp.h>

#include <cmath>

#include "abi.h"
#include "vectors.h"

namespace {

// Mirrored in abi.py.
struct LayerNormArgs {
  int64_t rows, width;
  double epsilon;
  const void* input;   // [rows, width]
  const void* weight;  // [width]
  const void* bias;    // [width]
  const void* added;   // [rows, width], or null
  void* output;        // [rows, width]: norm(input) + added
};

template <class Element> INLINE void normalise_row(const LayerNormArgs& args, int64_t row) {
  typedef Scalar<Element> N;
  const Element* input = (const Element*)args.input + row * args.width;
  const Element* added = args.added ? (const Element*)args.added + row * args.width : nullptr;
  const Element* weight = (const Element*)args.weight;
  const Element* bias = (const Element*)args.bias;
  Element* output = (Element*)args.output + row * args.width;

  Block<Element> total = {};
  for (int64_t i = 0; i < args.width; i += BLOCK) {
    const Block<Element> block = load(input + i);
    for (int h = 0; h < 2; h++) total.half[h] += block.half[h];
  }
  const N mean = reduce_sum<N>(total.half[0] + total.half[1]) / args.width;
  total = {};
  for (int64_t i = 0; i < args.width; i += BLOCK) {
    const Block<Element> block = load(input + i);
    for (int h = 0; h < 2; h++) total.half[h] += (block.half[h] - mean) * (block.half[h] - mean);
  }
  const N variance = reduce_sum<N>(total.half[0] + total.half[1]) / args.width;
  const N scale = 1 / std::sqrt(variance + N(args.epsilon));
  for (int64_t i = 0; i < args.width; i += BLOCK) {
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

MULTIVERSIONED void normalise_float32(const LayerNormArgs& args, int64_t row) {
  normalise_row<float>(args, row);
}

MULTIVERSIONED void normalise_float64(const LayerNormArgs& args, int64_t row) {
  normalise_row<double>(args, row);
}

MULTIVERSIONED void normalise_bfloat16(const LayerNormArgs& args, int64_t row) {
  normalise_row<BFloat16>(args, row);
}

void normalise_all(void (*normalise)(const LayerNormArgs&, int64_t), const LayerNormArgs& args,
                   int threads) {
#pragma omp parallel for num_threads(threads)
  for (int64_t row = 0; row < args.rows; row++) normalise(args, row);
}

}  // namespace

EXPORT_SIZE(LayerNormArgs)

extern "C" {

void layer_norm_float32(const LayerNormArgs* args, int threads) {
  normalise_all(normalise_float32, *args, threads);
}

void layer_norm_float64(const LayerNormArgs* args, int threads) {
  normalise_all(normalise_float64, *args, threads);
}

void layer_norm_bfloat16(const LayerNormArgs* args, int threads) {
  normalise_all(normalise_bfloat16, *args, threads);
}
}
