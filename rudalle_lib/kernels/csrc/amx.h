// Intel AMX: tile registers of 16 rows of 64 bytes, and products of tiles. Includes vectors.h and
// compiles it for CPUs with AMX, so a source file includes either this header or vectors.h.
//
// With EMULATE_AMX the few instructions used are computed in plain C++ on any CPU. Such a library
// is for tests only: abi.py does not load it.
#pragma once

#if defined(EMULATE_AMX)
#define HAS_AMX 1
#define AMX_TARGET
#elif defined(__x86_64__) && defined(__linux__) && !defined(ONLY_AVX2)  // other platforms have no AMX
#include <immintrin.h>

#define HAS_AMX 1
#define AMX_TARGET                                                             \
  __attribute__((target("amx-tile,amx-bf16,amx-int8,avx512bf16,avx512f,avx512bw" \
                        ",avx512dq,avx512vl,fma")))
#define INLINE inline __attribute__((always_inline)) AMX_TARGET
#endif

#include "vectors.h"

namespace {

constexpr int TILE_ROWS = 16;
constexpr int TILE_ROW_BYTES = 64;
constexpr int TILE_COLUMNS = 16;  // of 4 bytes each: one int32 or float32 sum
constexpr int TILE_BYTES = TILE_ROWS * TILE_ROW_BYTES;

}  // namespace

#if HAS_AMX
namespace {

// The operand of `ldtilecfg`: the sizes of tiles 0 to 7.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

}  // namespace

#if defined(EMULATE_AMX)
#include "amx_emulation.h"
#else
namespace {

// Adds to each lane of `total` the products of two pairs of bfloat16 numbers.
INLINE Floats add_pair_products(Floats total, UInt32s a, UInt32s b) {
  return (Floats)_mm512_dpbf16_ps((__m512)total, (__m512bh)a, (__m512bh)b);
}

}  // namespace
#endif

namespace {

// Each thread configures its tiles before its first product and releases them after its last.
AMX_TARGET inline void configure_tiles(const TileConfig& config) { _tile_loadconfig(&config); }
AMX_TARGET inline void release_tiles() { _tile_release(); }

}  // namespace
#endif
