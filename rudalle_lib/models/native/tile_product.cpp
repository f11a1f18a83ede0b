// Linear layers that multiply by AMX's tiles, in bfloat16 or in 8-bit integers. See
// tiled_linear.py.
//
// For a batch of up to some hundred rows reading the weights decides: each is read once, in the
// order of memory, and fetched into the second cache while others are multiplied.

#include <omp.h>

#include <algorithm>
#include <type_traits>

#include "tiles.h"

#if HAS_TILES  // elsewhere oneDNN multiplies
#include <sys/syscall.h>
#include <unistd.h>

namespace {

constexpr int PANEL = LANES;               // outputs of a tile of weights
constexpr int PANELS = 2;                  // that are worked on at once
constexpr int ROWS = 2 * TILE_ROWS;        // rows that are
constexpr int64_t ROWS_AT_ONCE = 256;      // that share a reading: a block of them fits the cache
constexpr int AHEAD = 8 * TILE;            // how far ahead weights are fetched
constexpr int HIGHEST = 126;               // level of a row's largest number
constexpr float SMALLEST_STEP = 1e-20f;    // so that a row of zeros stays zeros

typedef int8_t Bytes __attribute__((vector_size(LANES)));

// As in tiled_linear.py. Inputs are taken in blocks of some tiles, `depth`, side by side.
struct Product {
  int64_t rows, inputs, outputs;
  int64_t blocks, depth;
  int64_t gelu;         // whether to apply its tanh form
  const void* input;    // [rows, inputs]
  const char* weight;   // [blocks, outputs / PANEL, depth, TILE]
  const float* scale;   // [outputs], of integers
  const void* bias;     // [outputs]
  char* tiles;          // room for the rows: [blocks, rows / TILE_ROWS, depth, TILE], rounded up
  float* steps;         // room for [rows], of integers
  void* sums;           // room for [outputs / PANEL, rows, PANEL], rounded up, if there are blocks
  void* output;         // [rows, outputs]
};

template <class Number> struct SumOf {
  typedef float Sum;
};
template <> struct SumOf<int8_t> {
  typedef int32_t Sum;
};
template <class Number> using Sum = typename SumOf<Number>::Sum;

INLINE int64_t pieces(int64_t whole, int64_t size) { return (whole + size - 1) / size; }

// Where a tile of rows begins in a block.
INLINE char* tile_of(const Product& product, int64_t block, int64_t row) {
  const int64_t tiles = pieces(product.rows, TILE_ROWS);
  return product.tiles + (block * tiles + row / TILE_ROWS) * product.depth * TILE;
}

// Lays a row out in tiles: `put(i, to)` writes the TILE_BYTES of it that begin with number i.
template <class Number, class Put>
INLINE void lay_out(const Product& product, int64_t row, Put put) {
  int64_t i = 0;
  for (int64_t block = 0; block < product.blocks; block++) {
    char* to = tile_of(product, block, row) + row % TILE_ROWS * TILE_BYTES;
    for (int64_t k = 0; k < product.depth; k++, to += TILE, i += TILE_BYTES / sizeof(Number))
      put(i, to);
  }
}

INLINE void copy_row(const Product& product, int64_t row) {
  const BFloat16* input = (const BFloat16*)product.input + row * product.inputs;
  lay_out<BFloat16>(product, row,
                    [=](int64_t i, char* to) FOR_TILES { std::memcpy(to, input + i, TILE_BYTES); });
}

// Rounds a row to levels of its own, x = level * step. What is not finite makes the step so too.
template <class Element> INLINE void quantise_row(const Product& product, int64_t row) {
  const Element* input = (const Element*)product.input + row * product.inputs;
  Floats most = {}, poison = {};
  for (int64_t i = 0; i < product.inputs; i += LANES) {
    const Floats x = load_lanes(input + i);
    const Floats size = x < 0.0f ? -x : x;
    most = size > most ? size : most;
    poison += x * 0.0f;
  }
  const float top = largest<float>(most) / HIGHEST;
  const float step = (top < SMALLEST_STEP ? SMALLEST_STEP : top) + sum<float>(poison);
  const float levels_a_unit = 1.0f / step;
  product.steps[row] = step;
  lay_out<int8_t>(product, row, [=](int64_t first, char* to) FOR_TILES {
    for (int64_t i = 0; i < TILE_BYTES; i += LANES) {
      const Floats shifted = load_lanes(input + first + i) * levels_a_unit + ROUND;
      write(to + i, __builtin_convertvector(wholes(shifted), Bytes));
    }
  });
}

INLINE Floats gelu(Floats x) {
  const Floats twice = -1.5957691216f * (x + 0.044715f * x * x * x);
  return x / (1.0f + exponential(twice > 87.0f ? Floats{} + 87.0f : twice));
}

INLINE Floats scaled_back(const Product&, const float* sums, int64_t, int64_t) {
  return read<Floats>(sums);
}

INLINE Floats scaled_back(const Product& product, const int32_t* sums, int64_t row,
                          int64_t column) {
  const Floats scale = read<Floats>(product.scale + column) * product.steps[row];
  return __builtin_convertvector(read<Ints>(sums), Floats) * scale;
}

// Sums of some rows with a few panels to outputs, line by line: what is beside is written at once.
template <class Element, class S>
INLINE void finish(const Product& product, const S* sums, int64_t row, int64_t end,
                   int64_t column) {
  Floats bias[PANELS];
  for (int p = 0; p < PANELS; p++)
    bias[p] = load_lanes((const Element*)product.bias + column + p * PANEL);
  for (; row < end; row++, sums += PANEL) {
    Element* output = (Element*)product.output + row * product.outputs + column;
    for (int p = 0; p < PANELS; p++) {
      const int64_t beside = p * PANEL;
      const Floats y = scaled_back(product, sums + ROWS * beside, row, column + beside) + bias[p];
      store_lanes(output + beside, product.gelu ? gelu(y) : y);
    }
  }
}

const TileConfig FULL_TILES;

// Adds to a tile of sums; tiles are named by constants.
#define MULTIPLY(sums, rows, weights)               \
  do {                                              \
    if constexpr (std::is_same_v<Number, int8_t>)   \
      _tile_dpbssd(sums, rows, weights);            \
    else                                            \
      _tile_dpbf16ps(sums, rows, weights);          \
  } while (false)

// Sums of one or two tiles of rows with two panels of weights over a block, on top of those of the
// blocks before. Weights that are new are fetched: a line at a time, between products, because what
// the first cache waits for at once is little.
template <class Number, int TILES>
INLINE void multiply_tiles(const char* rows, const char* panel, int64_t depth, bool is_first,
                           bool is_new, Sum<Number>* sums) {
  constexpr int SIZE = TILE / sizeof(Sum<Number>);
  constexpr int HALF = TILE / 2;
  if (is_first) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  } else {
    _tile_loadd(0, sums, TILE_BYTES);
    _tile_loadd(1, sums + SIZE, TILE_BYTES);
    _tile_loadd(2, sums + 2 * SIZE, TILE_BYTES);
    _tile_loadd(3, sums + 3 * SIZE, TILE_BYTES);
  }
  const int64_t next = depth * TILE;  // from one tile of rows to the next, from panel to panel
  for (int64_t k = 0; k < depth; k++, panel += TILE, rows += TILE) {
    _tile_stream_loadd(4, panel, TILE_BYTES);
    _tile_loadd(6, rows, TILE_BYTES);
    MULTIPLY(0, 6, 4);
    if (is_new) fetch(panel + AHEAD, HALF);
    if constexpr (TILES > 1) {
      _tile_loadd(7, rows + next, TILE_BYTES);
      MULTIPLY(1, 7, 4);
    }
    if (is_new) fetch(panel + AHEAD + HALF, HALF);
    _tile_stream_loadd(5, panel + next, TILE_BYTES);
    MULTIPLY(2, 6, 5);
    if (is_new) fetch(panel + next + AHEAD, HALF);
    if constexpr (TILES > 1) MULTIPLY(3, 7, 5);
    if (is_new) fetch(panel + next + AHEAD + HALF, HALF);
  }
  _tile_stored(0, sums, TILE_BYTES);
  _tile_stored(1, sums + SIZE, TILE_BYTES);
  _tile_stored(2, sums + 2 * SIZE, TILE_BYTES);
  _tile_stored(3, sums + 3 * SIZE, TILE_BYTES);
}

// Some rows with two panels of weights over a block; after the last block their outputs.
template <class Number, class Element>
INLINE void multiply_panels(const Product& product, int64_t block, int64_t panel, int64_t first,
                            int64_t end) {
  constexpr int64_t SUMS = ROWS * PANELS * PANEL;
  const int64_t of_block = block * (product.outputs / PANEL);
  const char* weight = product.weight + (of_block + panel) * product.depth * TILE;
  const int64_t before = panel / PANELS * pieces(product.rows, ROWS);
  alignas(64) Sum<Number> own[SUMS];
  for (int64_t row = first; row < end; row += ROWS) {
    const char* rows = tile_of(product, block, row);
    Sum<Number>* sums = (Sum<Number>*)product.sums + (before + row / ROWS) * SUMS;
    if (product.blocks == 1) sums = own;
    if (end - row > TILE_ROWS)
      multiply_tiles<Number, 2>(rows, weight, product.depth, block == 0, row == first, sums);
    else
      multiply_tiles<Number, 1>(rows, weight, product.depth, block == 0, row == first, sums);
    if (block + 1 < product.blocks) continue;
    finish<Element>(product, sums, row, std::min(end, row + ROWS), panel * PANEL);
  }
}

// What each of the threads does.
template <class Number, class Element> FOR_TILES void multiply_share(const Product& product) {
  begin_tiles(FULL_TILES);
#pragma omp for
  for (int64_t row = 0; row < product.rows; row++) {
    if constexpr (std::is_same_v<Number, int8_t>)
      quantise_row<Element>(product, row);
    else
      copy_row(product, row);
  }
  for (int64_t first = 0; first < product.rows; first += ROWS_AT_ONCE) {
    const int64_t end = std::min(product.rows, first + ROWS_AT_ONCE);
    for (int64_t block = 0; block < product.blocks; block++)
#pragma omp for schedule(static) nowait
      for (int64_t panel = 0; panel < product.outputs / PANEL; panel += PANELS)
        multiply_panels<Number, Element>(product, block, panel, first, end);
  }
  end_tiles();
}

template <class Number, class Element> void multiply_all(const Product& product, int threads) {
#pragma omp parallel num_threads(threads)
  multiply_share<Number, Element>(product);
}

}  // namespace
#endif

extern "C" {

// Whether this processor has the tiles, and the system lets this process use them.
int can_multiply_tiles() {
#if HAS_TILES
  constexpr int ARCH_REQ_XCOMP_PERM = 0x1023, TILE_DATA = 18;
  return __builtin_cpu_supports("amx-int8") && __builtin_cpu_supports("amx-bf16") &&
         __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILE_DATA) == 0;
#else
  return 0;
#endif
}

#if HAS_TILES
void tiled_product_bfloat16(const Product* product, int threads) {
  multiply_all<BFloat16, BFloat16>(*product, threads);
}

void tiled_int8_product_float32(const Product* product, int threads) {
  multiply_all<int8_t, float>(*product, threads);
}

void tiled_int8_product_bfloat16(const Product* product, int threads) {
  multiply_all<int8_t, BFloat16>(*product, threads);
}
#endif
}
