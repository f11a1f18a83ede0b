// The AMX instructions that this library uses, in plain C++, so that its AMX code runs in tests on
// any CPU. Included by amx.h. Semantics and order of summation are those of Intel's Software
// Developer's Manual, except that subnormal numbers are kept. What faults on a CPU with AMX ends
// the process: using tiles that are not configured, or whose sizes do not fit.
#pragma once

#include <cstdio>
#include <cstdlib>

namespace {

struct EmulatedTiles {
  bool configured;
  TileConfig config;
  alignas(64) char bytes[8][TILE_ROWS][TILE_ROW_BYTES];
};

thread_local EmulatedTiles tiles;  // one set per thread, like registers

inline void require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "emulated AMX: %s\n", what);
  std::abort();
}

inline void _tile_loadconfig(const void* config) {
  tiles = {true, *(const TileConfig*)config, {}};
  require(tiles.config.palette == 1, "unknown palette");
  for (int tile = 0; tile < 8; tile++)
    require(tiles.config.rows[tile] <= TILE_ROWS && tiles.config.row_bytes[tile] <= TILE_ROW_BYTES,
            "a tile is too large");
}

inline void _tile_release() { tiles = {}; }

inline void _tile_zero(int tile) {
  require(tiles.configured, "tiles are not configured");
  std::memset(tiles.bytes[tile], 0, TILE_BYTES);
}

inline void _tile_loadd(int tile, const void* from, int64_t stride) {
  _tile_zero(tile);
  for (int row = 0; row < tiles.config.rows[tile]; row++)
    std::memcpy(tiles.bytes[tile][row], (const char*)from + row * stride,
                tiles.config.row_bytes[tile]);
}

inline void _tile_stream_loadd(int tile, const void* from, int64_t stride) {
  _tile_loadd(tile, from, stride);
}

inline void _tile_stored(int tile, void* to, int64_t stride) {
  require(tiles.configured, "tiles are not configured");
  for (int row = 0; row < tiles.config.rows[tile]; row++)
    std::memcpy((char*)to + row * stride, tiles.bytes[tile][row], tiles.config.row_bytes[tile]);
}

inline void require_product(int sums, int a, int b) {
  const TileConfig& config = tiles.config;
  require(tiles.configured && sums != a && sums != b && a != b &&
              config.rows[sums] == config.rows[a] &&
              config.row_bytes[sums] == config.row_bytes[b] &&
              config.rows[b] * 4 == config.row_bytes[a],
          "a product of tiles that do not fit");
}

// Products of bfloat16 numbers are exact in float32. Even and odd products have sums of their own.
inline void _tile_dpbf16ps(int sums, int a, int b) {
  require_product(sums, a, b);
  for (int row = 0; row < tiles.config.rows[sums]; row++) {
    Floats even = {}, odd = {};
    for (int k = 0; k < tiles.config.rows[b]; k++) {
      const UInt32s pair = UInt32s{} + loadu<UInt32s>(tiles.bytes[a][row])[k];
      const UInt32s pairs = loadu<UInt32s>(tiles.bytes[b][k]);
      even += (Floats)(pair << 16) * (Floats)(pairs << 16);
      odd += (Floats)(pair & 0xffff0000) * (Floats)(pairs & 0xffff0000);
    }
    const Floats before = loadu<Floats>(tiles.bytes[sums][row]);
    storeu(tiles.bytes[sums][row], before + (even + odd));
  }
}

inline void _tile_dpbssd(int sums, int a, int b) {
  require_product(sums, a, b);
  for (int row = 0; row < tiles.config.rows[sums]; row++) {
    Int32s total = loadu<Int32s>(tiles.bytes[sums][row]);
    for (int k = 0; k < tiles.config.rows[b]; k++) {
      const Int32s four = Int32s{} + loadu<Int32s>(tiles.bytes[a][row])[k];
      const Int32s fours = loadu<Int32s>(tiles.bytes[b][k]);
      for (int shift = 0; shift < 32; shift += 8)  // sign-extends one byte of each four
        total += ((four << (24 - shift)) >> 24) * ((fours << (24 - shift)) >> 24);
    }
    storeu(tiles.bytes[sums][row], total);
  }
}

inline Floats add_pair_products(Floats total, UInt32s a, UInt32s b) {
  total += (Floats)(a & 0xffff0000) * (Floats)(b & 0xffff0000);
  return total + (Floats)(a << 16) * (Floats)(b << 16);
}

}  // namespace
