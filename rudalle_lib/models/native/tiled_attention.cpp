// Attention from a cell in bfloat16 whose products with texts are made by AMX's tiles, and those with
// cells by the instruction that adds pairs of products. See cell_attention.h.

#include "tiles.h"

#if HAS_TILES  // elsewhere vectors do
#include "cell_attention.h"

namespace {

constexpr int INNER = TILE_BYTES / sizeof(BFloat16);  // numbers of a row of a tile
constexpr int NUMBERS = TILE / sizeof(BFloat16);      // of a tile
const TileConfig ROWS_OF_IMAGES{1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64},
                                {8, 8, 8, 8, 8, 8, 16, 16}};

// PARTS matrices of rows [TOGETHER, inner], one after the other, each times the same matrix in tiles
// [columns / LANES, inner / INNER, TILE], and the products added.
template <int PARTS, int STRIDE, int PRODUCT_STRIDE>
INLINE void multiply(const BFloat16* rows, const BFloat16* matrix, int64_t inner, int64_t columns,
                     float* products) {
  constexpr int64_t BYTES = STRIDE * sizeof(BFloat16), NEXT_PART = TOGETHER * STRIDE;
  const int64_t beside = inner * LANES, next_head = inner * columns;
  for (int64_t column = 0; column < columns; column += 2 * LANES, matrix += beside) {
    _tile_zero(0);
    _tile_zero(1);
    for (int64_t i = 0; i < inner; i += INNER, matrix += NUMBERS) {
      _tile_loadd(6, matrix, TILE_BYTES);
      _tile_loadd(7, matrix + beside, TILE_BYTES);
      fetch(matrix + next_head, NUMBERS);
      fetch(matrix + next_head + beside, NUMBERS);
      _tile_loadd(2, rows + i, BYTES);
      _tile_dpbf16ps(0, 2, 6);
      _tile_dpbf16ps(1, 2, 7);
      if constexpr (PARTS > 1) {
        _tile_loadd(3, rows + NEXT_PART + i, BYTES);
        _tile_dpbf16ps(0, 3, 6);
        _tile_dpbf16ps(1, 3, 7);
      }
    }
    _tile_stored(0, products + column, PRODUCT_STRIDE * sizeof(float));
    _tile_stored(1, products + column + LANES, PRODUCT_STRIDE * sizeof(float));
  }
}

// Queries are kept as they come. Where there are fewer images than rows, these hold anything.
struct ByTiles {
  typedef BFloat16 Element, Query;
  typedef Words Wanted;
  typedef Floats Total;

  static INLINE void put_query(Query* to, const BFloat16* from) { copy(to, from); }

  static INLINE Wanted wanted(const Query* query) { return read<Words>(query); }

  static INLINE void add_products(Total& total, const Wanted& wanted, const BFloat16* key) {
    const Words pairs = read<Words>(key);
    total = (Floats)_mm512_dpbf16_ps((__m512)total, (__m512bh)wanted, (__m512bh)pairs);
  }

  static INLINE float sum_of(const Total& total) { return sum<float>(total); }

  template <int ROWS>
  static INLINE void score_text(const Query* queries, const BFloat16* keys, int64_t width,
                                int64_t length, float* scores) {
    multiply<1, WIDTH_STRIDE, SEEN_STRIDE>(queries, keys, width, length, scores);
  }

  // A weight is the sum of two numbers of bfloat16, to 2^-17 of it.
  template <int ROWS>
  static INLINE void weigh_text(const float* weights, const BFloat16* values, int64_t length,
                                int64_t width, float* contexts) {
    alignas(64) BFloat16 parts[2 * ROWS * SEEN_STRIDE];
    for (int row = 0; row < ROWS; row++) {
      BFloat16* part = parts + row * SEEN_STRIDE;
      for (int64_t i = 0; i < length; i += LANES) {
        const Floats weight = read<Floats>(weights + row * SEEN_STRIDE + i);
        const Words upper = rounded_to_even(weight) & 0xffff0000;
        write(part + i, __builtin_convertvector(upper >> 16, Halves));
        store_lanes(part + ROWS * SEEN_STRIDE + i, weight - (Floats)upper);
      }
    }
    multiply<2, SEEN_STRIDE, WIDTH_STRIDE>(parts, values, length, width, contexts);
  }
};

// A task is a group in one head. Each thread does neighbouring ones, so that it finds what it has
// fetched.
FOR_TILES void attend_share(const Step& step) {
  begin_tiles(ROWS_OF_IMAGES);
#pragma omp for schedule(static)
  for (int64_t task = 0; task < step.groups * step.heads; task++) {
    const Group& group = step.group[task / step.heads];
    attend_rows<ByTiles, TOGETHER>(step, group, 0, group.count, task % step.heads);
  }
  end_tiles();
}

}  // namespace

extern "C" void attend_from_cell_by_tiles_bfloat16(const Step* step, int threads) {
#pragma omp parallel num_threads(threads)
  attend_share(*step);
}
#endif
