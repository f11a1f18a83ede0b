// Vectors of 16 numbers, by the extensions that GCC and Clang share, and elements of three types.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if !defined(INLINE)  // or what tiles.h has made of it
#define INLINE inline __attribute__((always_inline))
#endif
#if defined(__x86_64__)  // compiled for three generations, of which the best is taken when it loads
#define FOR_EACH_PROCESSOR \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FOR_EACH_PROCESSOR
#endif

namespace {

constexpr int LANES = 16;         // numbers of a vector
constexpr int BLOCK = 2 * LANES;  // numbers that are loaded at once: 64 bytes of bfloat16

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef double Doubles __attribute__((vector_size(8 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));

struct BFloat16 {
  uint16_t bits;  // the upper half of a float32
};

// What elements of a cache are computed in.
template <class Element> struct Computed {
  typedef float Number;
  typedef Floats Vector;
};
template <> struct Computed<double> {
  typedef double Number;
  typedef Doubles Vector;
};
template <class Element> using Number = typename Computed<Element>::Number;
template <class Element> using Vector = typename Computed<Element>::Vector;

// From and to any address.
template <class V, class T> INLINE V read(const T* from) {
  V vector;
  std::memcpy(&vector, from, sizeof vector);
  return vector;
}

template <class V, class T> INLINE void write(T* to, V vector) {
  std::memcpy(to, &vector, sizeof vector);
}

// BLOCK neighbours as two vectors: of bfloat16 those at even places, then those at odd ones,
// because that takes two instructions; of others the first half, then the second.
template <class Element> struct Block {
  Vector<Element> half[2];
};

template <class Element> INLINE Block<Element> load(const Element* from) {
  return {read<Vector<Element>>(from), read<Vector<Element>>(from + LANES)};
}

INLINE Block<BFloat16> load(const BFloat16* from) {
  const Words pairs = read<Words>(from);
  return {(Floats)(pairs << 16), (Floats)(pairs & 0xffff0000)};
}

template <class Element> INLINE void store(Element* to, Block<Element> block) {
  write(to, block.half[0]);
  write(to + LANES, block.half[1]);
}

INLINE Words rounded_to_even(Floats vector) {
  const Words bits = (Words)vector;
  return bits + 0x7fff + ((bits >> 16) & 1);
}

INLINE void store(BFloat16* to, Block<BFloat16> block) {
  write(to, (rounded_to_even(block.half[0]) >> 16) | (rounded_to_even(block.half[1]) & 0xffff0000));
}

// The same in the numbers that are computed with.
template <class Element> INLINE Block<Element> read_block(const Number<Element>* from) {
  return {read<Vector<Element>>(from), read<Vector<Element>>(from + LANES)};
}

template <class Element> INLINE void write_block(Number<Element>* to, Block<Element> block) {
  write(to, block.half[0]);
  write(to + LANES, block.half[1]);
}

template <class Element> INLINE Block<Element> scaled(Block<Element> block, Number<Element> by) {
  return {block.half[0] * by, block.half[1] * by};
}

// BLOCK elements as they are.
template <class Element> INLINE void copy(Element* to, const Element* from) {
  std::memcpy(to, from, BLOCK * sizeof(Element));
}

// LANES elements in their order, to and from float32.
INLINE Floats load_lanes(const float* from) { return read<Floats>(from); }

INLINE Floats load_lanes(const BFloat16* from) {
  return (Floats)(__builtin_convertvector(read<Halves>(from), Words) << 16);
}

INLINE void store_lanes(float* to, Floats vector) { write(to, vector); }

INLINE void store_lanes(BFloat16* to, Floats vector) {
  write(to, __builtin_convertvector(rounded_to_even(vector) >> 16, Halves));
}

template <class N, int COUNT> struct VectorOf {
  typedef N Vector __attribute__((vector_size(COUNT * sizeof(N))));
};

// Combines the halves of a vector until one number is left.
template <class N, int COUNT, class Combine>
INLINE N reduce(typename VectorOf<N, COUNT>::Vector vector, Combine combine) {
  if constexpr (COUNT == 2) {
    return combine(vector[0], vector[1]);
  } else {
    typedef typename VectorOf<N, COUNT / 2>::Vector Half;
    const N* lanes = (const N*)&vector;
    return reduce<N, COUNT / 2>(combine(read<Half>(lanes), read<Half>(lanes + COUNT / 2)), combine);
  }
}

template <class N> INLINE N sum(Vector<N> vector) {
  return reduce<N, LANES>(vector, [](auto a, auto b) { return a + b; });
}

template <class N> INLINE N largest(Vector<N> vector) {
  return reduce<N, LANES>(vector, [](auto a, auto b) { return a > b ? a : b; });
}

// What is added to it becomes whole: 1.5 * 2^23. `wholes` reads such a sum.
constexpr float ROUND = 12582912.0f;
INLINE Ints wholes(Floats shifted) { return (Ints)shifted - (Ints)(Floats{} + ROUND); }

// e^x for x <= 87, to 1e-7 of it: 2^n times a polynomial of the rest, after Cephes' expf.
INLINE Floats exponential(Floats x) {
  x = x < -87.0f ? Floats{} - 87.0f : x;
  const Floats shifted = x * 1.44269504f + ROUND;
  const Floats n = shifted - ROUND;
  const Floats rest = x - n * 0.693359375f + n * 2.12194440e-4f;  // log(2) in two parts
  Floats power = rest * 1.9875691500e-4f + 1.3981999507e-3f;
  power = power * rest + 8.3334519073e-3f;
  power = power * rest + 4.1665795894e-2f;
  power = power * rest + 1.6666665459e-1f;
  power = power * rest + 5.0000001201e-1f;
  power = power * rest * rest + rest + 1.0f;
  return power * (Floats)((wholes(shifted) + 127) << 23);
}

INLINE Doubles exponential(Doubles x) {
  for (int lane = 0; lane < LANES; lane++) x[lane] = std::exp(x[lane]);
  return x;
}

// Brings numbers near that are needed soon; they need not exist.
template <class Element> INLINE void fetch(const Element* from, int64_t count) {
  for (int64_t i = 0; i < count; i += 64 / sizeof(Element)) __builtin_prefetch(from + i, 0, 2);
}

}  // namespace
