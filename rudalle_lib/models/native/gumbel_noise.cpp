// Gumbel noise of rows of candidates, in one pass. See noise.py, whose numbers these are.

#include <omp.h>

#include "vectors.h"

namespace {

typedef uint64_t Bits __attribute__((vector_size(8 * LANES)));
typedef int64_t Wholes __attribute__((vector_size(8 * LANES)));

// As in noise.py.
struct Noise {
  int64_t rows, candidates;
  const uint64_t* streams;  // [rows]
  float* output;            // [rows, candidates]
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
  const Doubles low = s * (half + rest * z) + k * 1.90821492927058770002e-10;  // log(2) in two parts
  return k * 6.93147180369123816490e-01 - ((half - low) - f);
}

INLINE void fill_row(const Noise& noise, int64_t row) {
  constexpr uint64_t GOLDEN_GAMMA = 0x9e3779b97f4a7c15;
  float* output = noise.output + row * noise.candidates;
  Bits number;
  for (int lane = 0; lane < LANES; lane++) number[lane] = lane + 1;
  for (int64_t i = 0; i < noise.candidates; i += LANES, number += LANES) {
    const Bits bits = mix(noise.streams[row] + GOLDEN_GAMMA * number) >> 12;
    const Doubles uniform = (__builtin_convertvector(bits, Doubles) + 0.5) * 0x1p-52;
    const Floats gumbel = __builtin_convertvector(-logarithm(-logarithm(uniform)), Floats);
    const int64_t left = noise.candidates - i;
    std::memcpy(output + i, &gumbel, (left < LANES ? left : LANES) * sizeof(float));
  }
}

FOR_EACH_PROCESSOR void fill(const Noise& noise, int64_t row) { fill_row(noise, row); }

}  // namespace

extern "C" void gumbel_noise_float32(const Noise* noise, int threads) {
#pragma omp parallel for num_threads(threads)
  for (int64_t row = 0; row < noise->rows; row++) fill(*noise, row);
}
