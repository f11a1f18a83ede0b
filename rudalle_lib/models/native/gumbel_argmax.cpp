// Draws a candidate of each row by Gumbel noise, in one pass. See noise.py, whose noise this is.

#include <omp.h>

#include <algorithm>
#include <limits>

#include "vectors.h"

namespace {

typedef uint64_t Bits __attribute__((vector_size(8 * LANES)));
typedef int64_t Wholes __attribute__((vector_size(8 * LANES)));

// As in noise.py.
struct Draw {
  int64_t rows, candidates;
  const uint64_t* streams;  // [rows]
  const float* logits;      // [rows, candidates]
  const float* least;       // [rows]
  int64_t* chosen;          // [rows], the result
};

// SplitMix64's finaliser.
INLINE Bits mix(Bits bits) {
  bits = (bits ^ (bits >> 30)) * 0xbf58476d1ce4e5b9;
  bits = (bits ^ (bits >> 27)) * 0x94d049bb133111eb;
  return bits ^ (bits >> 31);
}

// The natural logarithm of normal positive numbers, to one unit in the last place, after fdlibm's
// log: x = 2^k (1 + f), f between sqrt(1/2) - 1 and sqrt(2) - 1.
INLINE Doubles logarithm(Doubles x) {
  constexpr uint64_t ROOT_OF_HALF = 0x3fe6a09e667f3bcd;
  const Bits bits = (Bits)x - ROOT_OF_HALF;
  const Doubles k = __builtin_convertvector((Wholes)bits >> 52, Doubles);
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

// Noise of the candidates with these numbers, from 1 on.
INLINE Floats gumbel(uint64_t stream, Bits numbers) {
  constexpr uint64_t GOLDEN_GAMMA = 0x9e3779b97f4a7c15;
  const Bits bits = mix(stream + GOLDEN_GAMMA * numbers) >> 12;
  const Doubles uniform = (__builtin_convertvector(bits, Doubles) + 0.5) * 0x1p-52;
  return __builtin_convertvector(-logarithm(-logarithm(uniform)), Floats);
}

// Only candidates that are allowed get noise: of some at a time, their places are put together.
INLINE int64_t draw_row(const Draw& draw, int64_t row) {
  constexpr int64_t SOME = 1024;
  constexpr float NEVER = -std::numeric_limits<float>::infinity();
  const float* logits = draw.logits + row * draw.candidates;
  const float least = draw.least[row];
  int32_t allowed[SOME + LANES];
  Ints chosen = {};
  Floats best = Floats{} + NEVER;
  for (int64_t start = 0; start < draw.candidates; start += SOME) {
    const int64_t end = std::min(draw.candidates, start + SOME);
    int64_t count = 0;
    for (int64_t place = start; place < end; place++) {
      allowed[count] = place;
      count += logits[place] >= least;
    }
    std::fill_n(allowed + count, LANES, -1);  // nobody: the last ones need not be LANES
    for (int64_t i = 0; i < count; i += LANES) {
      const Ints places = read<Ints>(allowed + i);
      Floats logit;
      for (int lane = 0; lane < LANES; lane++)
        logit[lane] = places[lane] < 0 ? NEVER : logits[places[lane]];
      const Bits numbers = __builtin_convertvector(places + 1, Bits);
      const Floats noisy = logit + gumbel(draw.streams[row], numbers);
      const Ints better = noisy > best;
      best = better ? noisy : best;
      chosen = better ? places : chosen;
    }
  }
  int first = 0;
  for (int lane = 1; lane < LANES; lane++)
    if (best[lane] > best[first] || (best[lane] == best[first] && chosen[lane] < chosen[first]))
      first = lane;
  return chosen[first];
}

FOR_EACH_PROCESSOR void choose(const Draw& draw, int64_t row) {
  draw.chosen[row] = draw_row(draw, row);
}

}  // namespace

extern "C" void gumbel_argmax_float32(const Draw* draw, int threads) {
#pragma omp parallel for num_threads(threads)
  for (int64_t row = 0; row < draw->rows; row++) choose(*draw, row);
}
