// Attention from a new cell in bfloat16: AMX tiles for the products with texts, the bfloat16 dot
// product instruction for those with cells. See cached_attention.h.

#include "amx.h"

#if HAS_AMX  // other platforms use vectors
#include "cached_attention.h"

namespace {

constexpr int ROW_ELEMENTS = TILE_ROW_BYTES / sizeof(BFloat16);  // per row of a tile
constexpr int TILE_ELEMENTS = TILE_BYTES / sizeof(BFloat16);
// Tiles 0 to 5 have one row per image, tiles 6 and 7 hold the text matrix.
const TileConfig IMAGE_ROWS{1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64},
                            {8, 8, 8, 8, 8, 8, 16, 16}};

// Multiplies each of PARTS consecutive matrices [MAX_GROUP, inner] by one matrix in tiles [columns
// / LANES, inner / ROW_ELEMENTS, tile] and adds the products.
template <int PARTS, int STRIDE, int PRODUCT_STRIDE>
INLINE void multiply(const BFloat16* rows, const BFloat16* matrix, int64_t inner, int64_t columns,
                     float* products) {
  constexpr int64_t BYTES = STRIDE * sizeof(BFloat16), NEXT_PART = MAX_GROUP * STRIDE;
  const int64_t next_column = inner * LANES, next_head = inner * columns;
  for (int64_t column = 0; column < columns; column += 2 * LANES, matrix += next_column) {
    _tile_zero(0);
    _tile_zero(1);
    for (int64_t i = 0; i < inner; i += ROW_ELEMENTS, matrix += TILE_ELEMENTS) {
      _tile_loadd(6, matrix, TILE_ROW_BYTES);
      _tile_loadd(7, matrix + next_column, TILE_ROW_BYTES);
      prefetch(matrix + next_head, TILE_ELEMENTS);
      prefetch(matrix + next_head + next_column, TILE_ELEMENTS);
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

// Queries stay in bfloat16. Rows beyond the last image are uninitialised; their products are
// unused.
struct AmxBackend {
  typedef BFloat16 Element, Query;
  typedef UInt32s QueryBlock;
  typedef Floats Partial;

  static INLINE void store_query(Query* to, const BFloat16* from) { copy(to, from); }

  static INLINE QueryBlock load_query(const Query* query) { return loadu<UInt32s>(query); }

  static INLINE void multiply_add(Partial& total, const QueryBlock& query, const BFloat16* key) {
    total = add_pair_products(total, query, loadu<UInt32s>(key));
  }

  static INLINE float reduce(const Partial& total) { return reduce_sum<float>(total); }

  template <int ROWS>
  static INLINE void score_text(const Query* queries, const BFloat16* keys, int64_t width,
                                int64_t length, float* scores) {
    multiply<1, WIDTH_STRIDE, SCORE_STRIDE>(queries, keys, width, length, scores);
  }

  // Splits each weight into a sum of two bfloat16 numbers, with a relative error of 2^-17.
  template <int ROWS>
  static INLINE void weight_text_values(const float* weights, const BFloat16* values,
                                        int64_t length, int64_t width, float* contexts) {
    alignas(64) BFloat16 parts[2 * ROWS * SCORE_STRIDE];
    for (int row = 0; row < ROWS; row++) {
      BFloat16* part = parts + row * SCORE_STRIDE;
      for (int64_t i = 0; i < length; i += LANES) {
        const Floats weight = loadu<Floats>(weights + row * SCORE_STRIDE + i);
        const UInt32s upper = round_to_bfloat16(weight) & 0xffff0000;
        storeu(part + i, __builtin_convertvector(upper >> 16, UInt16s));
        store_lanes(part + ROWS * SCORE_STRIDE + i, weight - (Floats)upper);
      }
    }
    multiply<2, SCORE_STRIDE, WIDTH_STRIDE>(parts, values, length, width, contexts);
  }
};

// The share of one thread. One task is one group of images in one head; with the static schedule
// each thread runs consecutive tasks and so uses its own prefetches.
AMX_TARGET void attend_share(const AttentionArgs& args) {
  configure_tiles(IMAGE_ROWS);
#pragma omp for schedule(static)
  for (int64_t task = 0; task < args.num_groups * args.heads; task++) {
    const ImageGroup& group = args.groups[task / args.heads];
    attend_rows<AmxBackend, MAX_GROUP>(args, group, 0, group.num_images, task % args.heads);
  }
  release_tiles();
}

}  // namespace

extern "C" void amx_attention_bfloat16(const AttentionArgs* args, int threads) {
#pragma omp parallel num_threads(threads)
  attend_share(*args);
}
#endif
