// Gumbel-max sampling of one token id per row, in one pass. The noise is that of noise.py.

#include <omp.h>

#include <algorithm>
#include <limits>

#include "abi.h"
#include "vectors.h"

namespace {

typedef uint64_t UInt64s __attribute__((vector_size(8 * LANES)));
typedef int64_t Int64s __attribute__((vector_size(8 * LANES)));

// Mirrored in abi.py.
struct GumbelArgmaxArgs {
  int64_t rows, vocab_size;
  const uint64_t* streams;  // [rows]
  const float* logits;      // [rows, vocab_size]
  const float* min_logit;   // [rows]: smaller logits are never drawn
  int64_t* chosen;          // [rows]: the output
};

// SplitMix64's finaliser.
INLINE UInt64s mix(UInt64s bits) {
  bits = (bits ^ (bits >> 30)) * 0xbf58476d1ce4e5b9;
  bits = (bits ^ (bits >> 27)) * 0x94d049bb133111eb;
  return bits ^ (bits >> 31);
}

// Natural logarithm of positive normal numbers, accurate to one unit in the last place. After
// fdlibm's log: x = 2^k (1 + f), with f between sqrt(1/2) - 1 and sqrt(2) - 1.
INLINE Doubles logarithm(Doubles x) {
  constexpr uint64_t ROOT_OF_HALF = 0x3fe6a09e667f3bcd;
  const UInt64s bits = (UInt64s)x - ROOT_OF_HALF;
  const Doubles k = __builtin_convertvector((Int64s)bits >> 52, Doubles);
  const Doubles f = (Doubles)((bits & 0x000fffffffffffff) + ROOT_OF_HALF) - 1.0;
  const Doubles s = f / (f + 2.0), z = s * s, half = 0.5 * f * f;
  Doubles rest = z * 1.479819860511658591e-01 + 1.531383769920937332e-01;
  rest = rest * z + 1.818357216161805012e-01;
  rest = rest * z + 2.222219843214978396e-01;
  rest = rest * z + 2.857142874366239149e-01;
  rest = rest * z + 3.999999999940941908e-01;
  rest = rest * z + 6.666666666666735130e-01;
  constexpr double LOG_2 = 6.93147180369123816490e-01, LOG_2_REST = 1.90821492927058770002e-10;
  const Doubles low = s * (half + rest * z) + k * LOG_2_REST;
  return k * LOG_2 - ((half - low) - f);
}

// Gumbel noise for the given counters; the counter of a token id is id + 1.
INLINE Floats gumbel(uint64_t stream, UInt64s counters) {
  constexpr uint64_t GOLDEN_GAMMA = 0x9e3779b97f4a7c15;
  const UInt64s bits = mix(stream + GOLDEN_GAMMA * counters) >> 12;
  const Doubles uniform = (__builtin_convertvector(bits, Doubles) + 0.5) * 0x1p-52;
  return __builtin_convertvector(-logarithm(-logarithm(uniform)), Floats);
}

// Noise is computed only for allowed ids: those of each chunk are compacted into an array first.
INLINE int64_t draw_row(const GumbelArgmaxArgs& args, int64_t row) {
  constexpr int64_t CHUNK = 1024;  // ids per compaction
  constexpr float MINUS_INFINITY = -std::numeric_limits<float>::infinity();
  const float* logits = args.logits + row * args.vocab_size;
  const float min_logit = args.min_logit[row];
  int32_t allowed[CHUNK + LANES];
  Int32s chosen = {};
  Floats best = Floats{} + MINUS_INFINITY;
  for (int64_t start = 0; start < args.vocab_size; start += CHUNK) {
    const int64_t end = std::min(args.vocab_size, start + CHUNK);
    int64_t count = 0;
    for (int64_t id = start; id < end; id++) {
      allowed[count] = id;
      count += logits[id] >= min_logit;
    }
    std::fill_n(allowed + count, LANES, -1);  // padding up to whole vectors
    for (int64_t i = 0; i < count; i += LANES) {
      const Int32s ids = loadu<Int32s>(allowed + i);
      Floats logit;
      for (int lane = 0; lane < LANES; lane++)
        logit[lane] = ids[lane] < 0 ? MINUS_INFINITY : logits[ids[lane]];
      const UInt64s counters = __builtin_convertvector(ids + 1, UInt64s);
      const Floats noisy = logit + gumbel(args.streams[row], counters);
      const Int32s better = noisy > best;
      best = better ? noisy : best;
      chosen = better ? ids : chosen;
    }
  }
  int first = 0;
  for (int lane = 1; lane < LANES; lane++)
    if (best[lane] > best[first] || (best[lane] == best[first] && chosen[lane] < chosen[first]))
      first = lane;
  return chosen[first];
}

MULTIVERSIONED void choose(const GumbelArgmaxArgs& args, int64_t row) {
  args.chosen[row] = draw_row(args, row);
}

}  // namespace

EXPORT_SIZE(GumbelArgmaxArgs)

extern "C" void gumbel_argmax_float32(const GumbelArgmaxArgs* args, int threads) {
#pragma omp parallel for num_threads(threads)
  for (int64_t row = 0; row < args->rows; row++) choose(*args, row);
}
