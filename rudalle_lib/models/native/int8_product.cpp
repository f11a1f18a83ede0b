// A linear layer that multiplies 8-bit integers by AMX's tiles. See tiled_int8_linear.py.
//
// For a batch of up to some hundred rows the weights decide, and each of them is read once.

#include <omp.h>

#include <algorithm>

#include "vectors.h"

#if defined(__x86_64__) && defined(__linux__)  // elsewhere oneDNN multiplies
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#define HAS_TILES 1
#define FOR_TILES \
  __attribute__((target("amx-tile,amx-int8,avx512f,avx512bw,avx512dq,avx512vl,fma")))

namespace {

constexpr int TILE_ROWS = 16, TILE_BYTES = 64;  // of a row
constexpr int TILE = TILE_ROWS * TILE_BYTES;
constexpr int PANEL = LANES;                    // outputs that are worked on at once
constexpr int TOGETHER = 4 * TILE_ROWS;         // rows that are
constexpr int64_t LEVELS_AT_ONCE = 1 << 20;     // bytes of them: half of a core's cache
constexpr int AHEAD = 8 * TILE;                 // how far ahead weights are fetched
constexpr int HIGHEST = 126;                    // level of a row's largest number
constexpr float SMALLEST_STEP = 1e-20f;         // so that a row of zeros stays zeros

typedef int8_t Bytes __attribute__((vector_size(LANES)));

// As in tiled_int8_linear.py.
struct Product {
  int64_t rows, inputs, outputs;
  int64_t gelu;          // whether to apply its tanh form
  const void* input;     // [rows, inputs]
  const int8_t* weight;  // [outputs / PANEL, inputs / TILE_BYTES, TILE_ROWS, PANEL, 4]
  const float* scale;    // [outputs]
  const void* bias;      // [outputs]
  int8_t* levels;        // room for [rows / TILE_ROWS, inputs / TILE_BYTES, TILE], rounded up
  float* steps;          // room for [rows]
  void* output;          // [rows, outputs]
};

// Rounds a row to levels of its own, x = level * step, and lays it out in tiles. What is not finite
// makes the step so too.
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
  int8_t* levels = product.levels + row / TILE_ROWS * TILE_ROWS * product.inputs;
  levels += row % TILE_ROWS * TILE_BYTES;
  for (int64_t i = 0; i < product.inputs; i += LANES) {
    const Floats shifted = load_lanes(input + i) * levels_a_unit + ROUND;
    const Bytes bytes = __builtin_convertvector(wholes(shifted), Bytes);
    write(levels + i / TILE_BYTES * TILE + i % TILE_BYTES, bytes);
  }
}

INLINE Floats gelu(Floats x) {
  const Floats twice = 1.5957691216f * (x + 0.044715f * x * x * x);
  const Floats power = exponential(twice < 0.0f ? twice : -twice), one = Floats{} + 1.0f;
  return x * (twice < 0.0f ? power : one) / (one + power);
}

// Scales the sums of some rows with a panel back.
template <class Element>
INLINE void finish(const Product& product, const int32_t* sums, int64_t row, int64_t end,
                   int64_t column) {
  const Floats scale = read<Floats>(product.scale + column);
  const Floats bias = load_lanes((const Element*)product.bias + column);
  for (; row < end; row++, sums += PANEL) {
    const Floats sum = __builtin_convertvector(read<Ints>(sums), Floats);
    const Floats y = sum * (scale * product.steps[row]) + bias;
    Element* output = (Element*)product.output + row * product.outputs + column;
    store_lanes(output, product.gelu ? gelu(y) : y);
  }
}

// What `ldtilecfg` reads: eight tiles of the full size.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
const TileConfig FULL_TILES;

FOR_TILES void begin_tiles() { _tile_loadconfig(&FULL_TILES); }

FOR_TILES void end_tiles() { _tile_release(); }

// Sums of ROWS tiles of rows with one panel of weights, which is fetched if it is new.
template <int ROWS>
FOR_TILES INLINE void multiply_tiles(const int8_t* levels, const int8_t* panel, int64_t depth,
                                     bool is_new, int32_t* sums) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  const int64_t below = depth * TILE;  // from one tile of rows to the next
  for (int64_t k = 0; k < depth; k++, panel += TILE, levels += TILE) {
    _tile_loadd(4, panel, TILE_BYTES);
    if (is_new) fetch(panel + AHEAD, TILE);
    _tile_loadd(5, levels, TILE_BYTES);
    _tile_dpbssd(0, 5, 4);
    if constexpr (ROWS > 1) {
      _tile_loadd(6, levels + below, TILE_BYTES);
      _tile_dpbssd(1, 6, 4);
    }
    if constexpr (ROWS > 2) {
      _tile_loadd(7, levels + 2 * below, TILE_BYTES);
      _tile_dpbssd(2, 7, 4);
    }
    if constexpr (ROWS > 3) {
      _tile_loadd(5, levels + 3 * below, TILE_BYTES);
      _tile_dpbssd(3, 5, 4);
    }
  }
  constexpr int SIZE = TILE / sizeof(int32_t);
  _tile_stored(0, sums, TILE_BYTES);
  _tile_stored(1, sums + SIZE, TILE_BYTES);
  _tile_stored(2, sums + 2 * SIZE, TILE_BYTES);
  _tile_stored(3, sums + 3 * SIZE, TILE_BYTES);
}

// Some rows with one panel of weights.
template <class Element>
FOR_TILES INLINE void multiply_panel(const Product& product, int64_t panel, int64_t first,
                                     int64_t end) {
  const int64_t depth = product.inputs / TILE_BYTES;
  const int8_t* weight = product.weight + panel * PANEL * product.inputs;
  alignas(64) int32_t sums[TOGETHER * PANEL];
  for (int64_t row = first; row < end; row += TOGETHER) {
    const int8_t* levels = product.levels + row * product.inputs;
    const bool is_new = row == first;
    switch ((std::min<int64_t>(end - row, TOGETHER) + TILE_ROWS - 1) / TILE_ROWS) {
      case 1: multiply_tiles<1>(levels, weight, depth, is_new, sums); break;
      case 2: multiply_tiles<2>(levels, weight, depth, is_new, sums); break;
      case 3: multiply_tiles<3>(levels, weight, depth, is_new, sums); break;
      default: multiply_tiles<4>(levels, weight, depth, is_new, sums);
    }
    finish<Element>(product, sums, row, std::min(end, row + TOGETHER), panel * PANEL);
  }
}

// What each of the threads does. Of many rows so many at a time as leave room in its cache.
template <class Element> FOR_TILES void multiply_share(const Product& product) {
  const int64_t turns = std::max<int64_t>(LEVELS_AT_ONCE / product.inputs / TOGETHER, 1);
  const int64_t at_once = turns * TOGETHER;
  begin_tiles();
#pragma omp for
  for (int64_t row = 0; row < product.rows; row++) quantise_row<Element>(product, row);
  for (int64_t row = 0; row < product.rows; row += at_once) {
    const int64_t end = std::min(product.rows, row + at_once);
#pragma omp for schedule(static) nowait
    for (int64_t panel = 0; panel < product.outputs / PANEL; panel++)
      multiply_panel<Element>(product, panel, row, end);
  }
  end_tiles();
}

template <class Element> void multiply_all(const Product& product, int threads) {
#pragma omp parallel num_threads(threads)
  multiply_share<Element>(product);
}

}  // namespace
#endif

extern "C" {

// Whether this processor has the tiles, and the system lets this process use them.
int can_multiply_tiles() {
#if HAS_TILES
  constexpr int ARCH_REQ_XCOMP_PERM = 0x1023, TILE_DATA = 18;
  return __builtin_cpu_supports("amx-int8") && __builtin_cpu_supports("avx512bw") &&
         syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILE_DATA) == 0;
#else
  return 0;
#endif
}

#if HAS_TILES
void int8_product_float32(const Product* product, int threads) {
  multiply_all<float>(*product, threads);
}

void int8_product_bfloat16(const Product* product, int threads) {
  multiply_all<BFloat16>(*product, threads);
}
#endif
}
