// Linear layers on AMX tiles, in bfloat16 or in 8-bit integers. See amx_linear.py.
//
// With up to a few hundred rows the layers are bound by reading weights: each weight is read once,
// in memory order, and prefetched into the L2 cache while others are multiplied.

#include <omp.h>

#include <algorithm>
#include <type_traits>

#include "abi.h"
#include "amx.h"
#include "linear.h"

namespace {

// Layouts of `LinearArgs`: weight [blocks, outputs / PANEL, depth, TILE_BYTES], tiles [blocks,
// rows / TILE_ROWS rounded up, depth, TILE_BYTES], and, if blocks > 1, sums [outputs / PANEL, rows
// rounded up, PANEL]. Inputs are split into `blocks` blocks of `depth` tiles each.
[[maybe_unused]] constexpr int PANEL = TILE_COLUMNS;  // outputs per tile of weights
constexpr int PANELS_PER_STEP = 2;            // panels multiplied together
constexpr int ROWS_PER_STEP = 2 * TILE_ROWS;  // rows multiplied together

}  // namespace

EXPORT_SIZE(LinearArgs)
EXPORT_CONSTANT(TILE_ROWS)
EXPORT_CONSTANT(TILE_COLUMNS)
EXPORT_CONSTANT(TILE_ROW_BYTES)
EXPORT_CONSTANT(PANELS_PER_STEP)
EXPORT_CONSTANT(ROWS_PER_STEP)

#if HAS_AMX  // other platforms use oneDNN
#if !defined(EMULATE_AMX)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

constexpr int64_t ROWS_PER_PASS = 256;          // rows per pass over the weights: fit the cache
constexpr int PREFETCH_BYTES = 8 * TILE_BYTES;  // prefetch distance

typedef int8_t Int8s __attribute__((vector_size(LANES)));

template <class Operand> struct AccumulateProduct {
  typedef float Sum;
};
template <> struct AccumulateProduct<int8_t> {
  typedef int32_t Sum;
};
template <class Operand> using Sum = typename AccumulateProduct<Operand>::Sum;

// The input tile of a block that contains a row.
INLINE char* tile_of(const LinearArgs& args, int64_t block, int64_t row) {
  const int64_t tiles = ceil_div(args.rows, TILE_ROWS);
  return args.tiles + (block * tiles + row / TILE_ROWS) * args.depth * TILE_BYTES;
}

// Writes a row into tiles: `put(i, to)` writes the TILE_ROW_BYTES that start at element i.
template <class Operand, class Put>
INLINE void write_tiles(const LinearArgs& args, int64_t row, Put put) {
  int64_t i = 0;
  for (int64_t block = 0; block < args.blocks; block++) {
    char* to = tile_of(args, block, row) + row % TILE_ROWS * TILE_ROW_BYTES;
    for (int64_t k = 0; k < args.depth; k++, to += TILE_BYTES) {
      put(i, to);
      i += TILE_ROW_BYTES / sizeof(Operand);
    }
  }
}

INLINE void tile_row(const LinearArgs& args, int64_t row) {
  const BFloat16* input = (const BFloat16*)args.input + row * args.inputs;
  write_tiles<BFloat16>(args, row, [=](int64_t i, char* to) AMX_TARGET {
    std::memcpy(to, input + i, TILE_ROW_BYTES);
  });
}

// Quantises a row with its own step.
template <class Element> INLINE void quantise_row(const LinearArgs& args, int64_t row) {
  const Element* input = (const Element*)args.input + row * args.inputs;
  const float step = quantisation_step(input, args.inputs);
  const float levels_per_unit = 1.0f / step;
  args.steps[row] = step;
  write_tiles<int8_t>(args, row, [=](int64_t first, char* to) AMX_TARGET {
    for (int64_t i = 0; i < TILE_ROW_BYTES; i += LANES) {
      const Floats shifted = load_lanes(input + first + i) * levels_per_unit + ROUND_MAGIC;
      storeu(to + i, __builtin_convertvector(to_int32(shifted), Int8s));
    }
  });
}

INLINE Floats dequantise(const LinearArgs&, const float* sums, int64_t, int64_t) {
  return loadu<Floats>(sums);
}

INLINE Floats dequantise(const LinearArgs& args, const int32_t* sums, int64_t row,
                         int64_t column) {
  const Floats scale = loadu<Floats>(args.scale + column) * args.steps[row];
  return __builtin_convertvector(loadu<Int32s>(sums), Floats) * scale;
}

// Converts the sums of rows `row` ... `end - 1` to outputs, row by row across all panels of a step.
template <class Element, class S>
INLINE void finish(const LinearArgs& args, const S* sums, int64_t row, int64_t end,
                   int64_t column) {
  Floats bias[PANELS_PER_STEP];
  for (int p = 0; p < PANELS_PER_STEP; p++)
    bias[p] = load_lanes((const Element*)args.bias + column + p * PANEL);
  for (; row < end; row++, sums += PANEL) {
    Element* output = (Element*)args.output + row * args.outputs + column;
    for (int p = 0; p < PANELS_PER_STEP; p++) {
      const int64_t offset = p * PANEL;
      const Floats y =
          dequantise(args, sums + ROWS_PER_STEP * offset, row, column + offset) + bias[p];
      store_lanes(output + offset, args.gelu ? gelu(y) : y);
    }
  }
}

const TileConfig FULL_TILES;

// Adds a product to a tile of sums. A macro, because tile numbers must be literals.
#define TILE_MULTIPLY_ADD(sums, rows, weights)     \
  do {                                             \
    if constexpr (std::is_same_v<Operand, int8_t>) \
      _tile_dpbssd(sums, rows, weights);           \
    else                                           \
      _tile_dpbf16ps(sums, rows, weights);         \
  } while (false)

// Multiplies one or two tiles of rows by two panels of weights over a block and adds the products
// to the sums of earlier blocks. The first time weights are used (`is_new`), later ones are
// prefetched: a few cache lines at a time between products, because the L1 cache has few
// outstanding misses.
template <class Operand, int TILES>
INLINE void multiply_tiles(const char* rows, const char* panel, int64_t depth, bool is_first,
                           bool is_new, Sum<Operand>* sums) {
  constexpr int SIZE = TILE_BYTES / sizeof(Sum<Operand>);
  constexpr int HALF = TILE_BYTES / 2;
  if (is_first) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  } else {
    _tile_loadd(0, sums, TILE_ROW_BYTES);
    _tile_loadd(1, sums + SIZE, TILE_ROW_BYTES);
    _tile_loadd(2, sums + 2 * SIZE, TILE_ROW_BYTES);
    _tile_loadd(3, sums + 3 * SIZE, TILE_ROW_BYTES);
  }
  const int64_t next = depth * TILE_BYTES;  // to the next tile of rows, or the next panel
  for (int64_t k = 0; k < depth; k++, panel += TILE_BYTES, rows += TILE_BYTES) {
    _tile_stream_loadd(4, panel, TILE_ROW_BYTES);
    _tile_loadd(6, rows, TILE_ROW_BYTES);
    TILE_MULTIPLY_ADD(0, 6, 4);
    if (is_new) prefetch(panel + PREFETCH_BYTES, HALF);
    if constexpr (TILES > 1) {
      _tile_loadd(7, rows + next, TILE_ROW_BYTES);
      TILE_MULTIPLY_ADD(1, 7, 4);
    }
    if (is_new) prefetch(panel + PREFETCH_BYTES + HALF, HALF);
    _tile_stream_loadd(5, panel + next, TILE_ROW_BYTES);
    TILE_MULTIPLY_ADD(2, 6, 5);
    if (is_new) prefetch(panel + next + PREFETCH_BYTES, HALF);
    if constexpr (TILES > 1) TILE_MULTIPLY_ADD(3, 7, 5);
    if (is_new) prefetch(panel + next + PREFETCH_BYTES + HALF, HALF);
  }
  _tile_stored(0, sums, TILE_ROW_BYTES);
  _tile_stored(1, sums + SIZE, TILE_ROW_BYTES);
  _tile_stored(2, sums + 2 * SIZE, TILE_ROW_BYTES);
  _tile_stored(3, sums + 3 * SIZE, TILE_ROW_BYTES);
}

// Multiplies rows `first` ... `end - 1` by two panels of weights over a block; after the last block
// writes their outputs.
template <class Operand, class Element>
INLINE void multiply_panels(const LinearArgs& args, int64_t block, int64_t panel, int64_t first,
                            int64_t end) {
  constexpr int64_t SUMS = ROWS_PER_STEP * PANELS_PER_STEP * PANEL;
  const int64_t block_offset = block * (args.outputs / PANEL);
  const char* weight = args.weight + (block_offset + panel) * args.depth * TILE_BYTES;
  const int64_t sums_before = panel / PANELS_PER_STEP * ceil_div(args.rows, ROWS_PER_STEP);
  alignas(64) Sum<Operand> local[SUMS];
  for (int64_t row = first; row < end; row += ROWS_PER_STEP) {
    const char* rows = tile_of(args, block, row);
    Sum<Operand>* sums = (Sum<Operand>*)args.sums + (sums_before + row / ROWS_PER_STEP) * SUMS;
    if (args.blocks == 1) sums = local;
    if (end - row > TILE_ROWS)
      multiply_tiles<Operand, 2>(rows, weight, args.depth, block == 0, row == first, sums);
    else
      multiply_tiles<Operand, 1>(rows, weight, args.depth, block == 0, row == first, sums);
    if (block + 1 < args.blocks) continue;
    finish<Element>(args, sums, row, std::min(end, row + ROWS_PER_STEP), panel * PANEL);
  }
}

// The share of one thread.
template <class Operand, class Element> AMX_TARGET void multiply_share(const LinearArgs& args) {
  configure_tiles(FULL_TILES);
#pragma omp for
  for (int64_t row = 0; row < args.rows; row++) {
    if constexpr (std::is_same_v<Operand, int8_t>)
      quantise_row<Element>(args, row);
    else
      tile_row(args, row);
  }
  for (int64_t first = 0; first < args.rows; first += ROWS_PER_PASS) {
    const int64_t end = std::min(args.rows, first + ROWS_PER_PASS);
    for (int64_t block = 0; block < args.blocks; block++)
#pragma omp for schedule(static) nowait
      for (int64_t panel = 0; panel < args.outputs / PANEL; panel += PANELS_PER_STEP)
        multiply_panels<Operand, Element>(args, block, panel, first, end);
  }
  release_tiles();
}

template <class Operand, class Element> void multiply_all(const LinearArgs& args, int threads) {
#pragma omp parallel num_threads(threads)
  multiply_share<Operand, Element>(args);
}

}  // namespace
#endif

extern "C" {

// Whether this CPU has AMX and the operating system permits this process to use it.
int has_amx() {
#if defined(EMULATE_AMX)
  return 1;
#elif HAS_AMX
  constexpr unsigned AMX = 1u << 22 | 1u << 24 | 1u << 25;  // bfloat16, tiles, int8: leaf 7, edx
  constexpr int ARCH_REQ_XCOMP_PERM = 0x1023, TILE_DATA = 18;
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && (edx & AMX) == AMX &&
         __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILE_DATA) == 0;
#else
  return 0;
#endif
}

#if HAS_AMX
void amx_linear_bfloat16(const LinearArgs* args, int threads) {
  multiply_all<BFloat16, BFloat16>(*args, threads);
}

void amx_int8_linear_float32(const LinearArgs* args, int threads) {
  multiply_all<int8_t, float>(*args, threads);
}

void amx_int8_linear_bfloat16(const LinearArgs* args, int threads) {
  multiply_all<int8_t, BFloat16>(*args, threads);
}
#endif
}
