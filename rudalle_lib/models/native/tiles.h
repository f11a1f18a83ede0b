// AMX: registers of 16 rows of 64 bytes, tiles, and products of them. Includes vectors.h, compiled for
// processors that have it: a source includes one or the other.
#pragma once

#if defined(__x86_64__) && defined(__linux__)  // elsewhere there are none
#include <immintrin.h>

#define HAS_TILES 1
#define FOR_TILES                                                              \
  __attribute__((target("amx-tile,amx-bf16,amx-int8,avx512bf16,avx512f,avx512bw" \
                        ",avx512dq,avx512vl,fma")))
#define INLINE inline __attribute__((always_inline)) FOR_TILES
#endif

#include "vectors.h"

#if HAS_TILES
namespace {

constexpr int TILE_ROWS = 16, TILE_BYTES = 64;  // of a row
constexpr int TILE = TILE_ROWS * TILE_BYTES;

// What `ldtilecfg` reads: the sizes of tiles 0 to 7.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Each thread says so before its first and after its last product.
FOR_TILES inline void begin_tiles(const TileConfig& config) { _tile_loadconfig(&config); }
FOR_TILES inline void end_tiles() { _tile_release(); }

}  // namespace
#endif
