// Runs several calls of this library one after the other. See `Program` in kernels/__init__.py.

#include <cstdint>

#include "abi.h"

namespace {

// Mirrored in abi.py.
struct Call {
  void (*function)(const void* args, int threads);
  const void* args;
  int64_t single_threaded;  // whether one thread is faster than several
};

}  // namespace

EXPORT_CONSTANT(ABI_VERSION)
EXPORT_CONSTANT(EMULATED)
EXPORT_SIZE(Call)

extern "C" void run_all(const Call* calls, int64_t count, int threads) {
  for (int64_t i = 0; i < count; i++)
    calls[i].function(calls[i].args, calls[i].single_threaded ? 1 : threads);
}
