// What this library has in common with abi.py: structures and constants. Python reads the exported
// values when it loads the library, and does not use a library whose values differ from its own.
#pragma once

#include <cstdint>

// Raise this here and in abi.py when the meaning of a structure or of a memory layout changes but
// no size or constant does.
constexpr int ABI_VERSION = 1;

// Whether AMX is emulated, which only tests do; see amx.h.
#if defined(EMULATE_AMX)
constexpr int EMULATED = 1;
#else
constexpr int EMULATED = 0;
#endif

#define EXPORT_SIZE(structure) \
  extern "C" int64_t sizeof_##structure() { return sizeof(structure); }
#define EXPORT_CONSTANT(name) \
  extern "C" int64_t constant_##name() { return name; }
