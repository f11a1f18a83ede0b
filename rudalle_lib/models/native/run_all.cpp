// Makes calls of this library one after the other: see `Program` in __init__.py.

#include <cstdint>

namespace {

// As in __init__.py.
struct Call {
  void (*function)(const void* structure, int threads);
  const void* structure;
  int64_t is_small;  // so that one thread alone is done sooner
};

}  // namespace

extern "C" void run_all(const Call* calls, int64_t count, int threads) {
  for (int64_t i = 0; i < count; i++)
    calls[i].function(calls[i].structure, calls[i].is_small ? 1 : threads);
}
