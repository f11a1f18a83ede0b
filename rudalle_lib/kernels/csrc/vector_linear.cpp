// Linear layers with vectors of 8 lanes, for CPUs without faster instructions for bfloat16 or 8-bit
// integers: bfloat16 weights are widened in registers and multiplied in float32, 8-bit ones in 16
// bits with exact sums. See vector_linear.py.
//
// Layouts of `LinearArgs`: weight [outputs / PANEL rounded up, depth, STEP_BYTES]; tiles, for each
// group of rows, [depth, rows of the group] of `Packed`. A step of `depth` is one input, or two of
// 8 bits. Results are batch-invariant: each output is summed in the order of its inputs.

#include <omp.h>

#include <algorithm>

#if defined(__x86_64__)
#include <immintrin.h>

#define VECTOR_TARGET __attribute__((target("avx2,fma")))
#define INLINE inline __attribute__((always_inline)) VECTOR_TARGET
#else
#define VECTOR_TARGET
#endif

#include "abi.h"
#include "linear.h"
#include "vectors.h"

namespace {

constexpr int PANEL = LANES;              // outputs that are computed together
constexpr int EIGHT = PANEL / 2;          // lanes per vector
constexpr int STEP_BYTES = 2 * PANEL;     // weights of a panel per step
constexpr int MAX_GROUP_ROWS = 6;         // rows whose sums fit 12 of 16 registers
constexpr int64_t STEPS_PER_BLOCK = 256;  // weights and inputs of a block fit the L1 cache
constexpr int64_t ROWS_PER_PASS = 240;    // rows per pass over the weights

typedef float FloatEight __attribute__((vector_size(4 * EIGHT)));
typedef int32_t IntEight __attribute__((vector_size(4 * EIGHT)));
typedef uint32_t UIntEight __attribute__((vector_size(4 * EIGHT)));
typedef int8_t ByteSixteen __attribute__((vector_size(2 * EIGHT)));
typedef int16_t ShortSixteen __attribute__((vector_size(4 * EIGHT)));

// Weights in bfloat16: those of outputs i and i + EIGHT of a panel side by side.
struct Float32Products {
  typedef float Packed, Sum;
  typedef FloatEight Vector;

  static INLINE void load_weights(const char* from, Vector* halves) {
    const UIntEight pairs = loadu<UIntEight>(from);
    halves[0] = (Vector)(pairs << 16);
    halves[1] = (Vector)(pairs & 0xffff0000);
  }

  static INLINE void multiply_add(Vector& total, Packed x, Vector weight) { total += x * weight; }
};

// Weights in 8 bits: those of two inputs side by side. The sum of two products has 15 bits.
struct Int16Products {
  typedef int32_t Packed, Sum;  // the levels of two inputs, 16 bits each
  typedef IntEight Vector;

  static INLINE void load_weights(const char* from, Vector* halves) {
    for (int h = 0; h < 2; h++) {
      const ByteSixteen bytes = loadu<ByteSixteen>(from + h * PANEL);
      halves[h] = (Vector)__builtin_convertvector(bytes, ShortSixteen);
    }
  }

  static INLINE void multiply_add(Vector& total, Packed x, Vector weight) {
    const Vector pair = Vector{} + x;
#if defined(__x86_64__)
    total += (Vector)_mm256_madd_epi16((__m256i)pair, (__m256i)weight);
#else
    total += ((pair << 16) >> 16) * ((weight << 16) >> 16) + (pair >> 16) * (weight >> 16);
#endif
  }
};

// Rows are split evenly into groups of at most MAX_GROUP_ROWS.
struct RowGroups {
  int64_t rows, count;

  explicit INLINE RowGroups(int64_t rows) : rows(rows), count(ceil_div(rows, MAX_GROUP_ROWS)) {}
  INLINE int64_t start(int64_t group) const { return group * rows / count; }
};

// Packs a group of rows: steps one after another, each with all rows.
template <class Element>
INLINE void pack(const LinearArgs& args, int64_t start, int64_t rows, float* to) {
  for (int64_t row = 0; row < rows; row++) {
    const Element* input = (const Element*)args.input + (start + row) * args.inputs;
    for (int64_t i = 0; i < args.inputs; i++) to[i * rows + row] = to_float(input[i]);
  }
}

template <class Element>
INLINE void pack(const LinearArgs& args, int64_t start, int64_t rows, int32_t* to) {
  for (int64_t row = 0; row < rows; row++) {
    const Element* input = (const Element*)args.input + (start + row) * args.inputs;
    const float step = quantisation_step(input, args.inputs);
    const float levels_per_unit = 1.0f / step;
    args.steps[start + row] = step;
    for (int64_t k = 0; k < args.depth; k++) {
      int32_t levels[2] = {};
      for (int64_t i = 0; i < 2 && 2 * k + i < args.inputs; i++) {
        const float shifted = to_float(input[2 * k + i]) * levels_per_unit + ROUND_MAGIC;
        levels[i] = (int32_t)(shifted - ROUND_MAGIC);
      }
      to[k * rows + row] = (levels[0] & 0xffff) | (levels[1] << 16);
    }
  }
}

// Adds the products of a block of steps to the sums [ROWS, PANEL] of a group of rows.
template <class Products, int ROWS>
INLINE void multiply_group(const typename Products::Packed* x, const char* weight, int64_t steps,
                           typename Products::Sum* sums) {
  typename Products::Vector total[ROWS][2], halves[2];
  for (int row = 0; row < ROWS; row++)
    for (int h = 0; h < 2; h++)
      total[row][h] = loadu<typename Products::Vector>(sums + row * PANEL + h * EIGHT);
  for (int64_t k = 0; k < steps; k++, weight += STEP_BYTES, x += ROWS) {
    Products::load_weights(weight, halves);
    for (int row = 0; row < ROWS; row++)
      for (int h = 0; h < 2; h++) Products::multiply_add(total[row][h], x[row], halves[h]);
  }
  for (int row = 0; row < ROWS; row++)
    for (int h = 0; h < 2; h++) storeu(sums + row * PANEL + h * EIGHT, total[row][h]);
}

template <class Products, int ROWS = MAX_GROUP_ROWS>
INLINE void multiply_rows(int64_t rows, const typename Products::Packed* x, const char* weight,
                          int64_t steps, typename Products::Sum* sums) {
  if (rows == ROWS) return multiply_group<Products, ROWS>(x, weight, steps, sums);
  if constexpr (ROWS > 1) multiply_rows<Products, ROWS - 1>(rows, x, weight, steps, sums);
}

INLINE Floats dequantise(const LinearArgs&, const float* sums, int64_t, Floats) {
  return loadu<Floats>(sums);
}

INLINE Floats dequantise(const LinearArgs& args, const int32_t* sums, int64_t row, Floats scale) {
  return __builtin_convertvector(loadu<Int32s>(sums), Floats) * (scale * args.steps[row]);
}

// The first `count` lanes.
template <class Element> INLINE Floats load_some(const Element* from, int64_t count) {
  float lanes[PANEL] = {};
  for (int64_t i = 0; i < count; i++) lanes[i] = to_float(from[i]);
  return loadu<Floats>(lanes);
}

// Converts sums [rows, PANEL] to outputs.
template <class Element, class Sum>
INLINE void finish(const LinearArgs& args, const Sum* sums, int64_t first, int64_t end,
                   int64_t column) {
  const int64_t count = std::min<int64_t>(PANEL, args.outputs - column);
  const Floats bias = load_some((const Element*)args.bias + column, count);
  const Floats scale = args.scale ? load_some(args.scale + column, count) : Floats{};
  for (int64_t row = first; row < end; row++, sums += PANEL) {
    const Floats y = dequantise(args, sums, row, scale) + bias;
    Element lanes[PANEL];
    store_lanes(lanes, args.gelu ? gelu(y) : y);
    Element* output = (Element*)args.output + row * args.outputs + column;
    std::memcpy(output, lanes, count * sizeof(Element));
  }
}

// Multiplies rows `first` ... `end - 1` by a panel of weights.
template <class Products, class Element>
INLINE void multiply_panel(const LinearArgs& args, int64_t first, int64_t end, int64_t panel) {
  typedef typename Products::Packed Packed;
  const RowGroups groups(end - first);
  const char* weight = args.weight + panel * args.depth * STEP_BYTES;
  const Packed* x = (const Packed*)args.tiles + first * args.depth;
  alignas(64) typename Products::Sum sums[ROWS_PER_PASS * PANEL] = {};
  for (int64_t k = 0; k < args.depth; k += STEPS_PER_BLOCK) {
    const int64_t steps = std::min(STEPS_PER_BLOCK, args.depth - k);
    for (int64_t group = 0; group < groups.count; group++) {
      const int64_t start = groups.start(group), rows = groups.start(group + 1) - start;
      multiply_rows<Products>(rows, x + start * args.depth + k * rows, weight + k * STEP_BYTES,
                              steps, sums + start * PANEL);
    }
  }
  finish<Element>(args, sums, first, end, panel * PANEL);
}

// The share of one thread.
template <class Products, class Element> VECTOR_TARGET void multiply_share(const LinearArgs& args) {
  for (int64_t first = 0; first < args.rows; first += ROWS_PER_PASS) {
    const int64_t end = std::min(args.rows, first + ROWS_PER_PASS);
    const RowGroups groups(end - first);
#pragma omp for
    for (int64_t group = 0; group < groups.count; group++) {
      const int64_t start = first + groups.start(group);
      const int64_t rows = first + groups.start(group + 1) - start;
      pack<Element>(args, start, rows, (typename Products::Packed*)args.tiles + start * args.depth);
    }
#pragma omp for schedule(static) nowait
    for (int64_t panel = 0; panel < ceil_div(args.outputs, PANEL); panel++)
      multiply_panel<Products, Element>(args, first, end, panel);
  }
}

template <class Products, class Element> void multiply_all(const LinearArgs& args, int threads) {
#pragma omp parallel num_threads(threads)
  multiply_share<Products, Element>(args);
}

}  // namespace

EXPORT_CONSTANT(STEP_BYTES)

extern "C" {

// Whether this CPU has the vectors that these layers are compiled for.
int has_vectors() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
  return 1;
#endif
}

void vector_linear_bfloat16(const LinearArgs* args, int threads) {
  multiply_all<Float32Products, BFloat16>(*args, threads);
}

void vector_int8_linear_float32(const LinearArgs* args, int threads) {
  multiply_all<Int16Products, float>(*args, threads);
}

void vector_int8_linear_bfloat16(const LinearArgs* args, int threads) {
  multiply_all<Int16Products, BFloat16>(*args, threads);
}
}
