// Vectors of 16 lanes, by the vector extensions of GCC and Clang, for float32, float64 and
// bfloat16.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if !defined(__clang__) && (!defined(__GNUC__) || __GNUC__ < 11)
#error "The kernels need GCC 11 or newer, or Clang 14 or newer."
#endif

#if !defined(INLINE)  // amx.h and vector_linear.cpp define their own
#define INLINE inline __attribute__((always_inline))
#endif
#if defined(EMULATE_AMX)  // a library for tests
#define MULTIVERSIONED
#elif defined(ONLY_AVX2)  // a library for measurements
#define MULTIVERSIONED __attribute__((target("arch=x86-64-v3")))
#elif defined(__x86_64__)  // compiled for three CPU generations; the best is chosen at load time
#define MULTIVERSIONED \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define MULTIVERSIONED
#endif

namespace {

constexpr int LANES = 16;         // elements per vector
constexpr int BLOCK = 2 * LANES;  // elements per load: 64 bytes of bfloat16

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef double Doubles __attribute__((vector_size(8 * LANES)));
typedef int32_t Int32s __attribute__((vector_size(4 * LANES)));
typedef uint32_t UInt32s __attribute__((vector_size(4 * LANES)));
typedef uint16_t UInt16s __attribute__((vector_size(2 * LANES)));

struct BFloat16 {
  uint16_t bits;  // the upper half of a float32
};

// The types in which elements are computed and accumulated.
template <class Element> struct Accumulate {
  typedef float Scalar;
  typedef Floats Vector;
};
template <> struct Accumulate<double> {
  typedef double Scalar;
  typedef Doubles Vector;
};
template <class Element> using Scalar = typename Accumulate<Element>::Scalar;
template <class Element> using Vector = typename Accumulate<Element>::Vector;

// Unaligned load and store.
template <class V, class T> INLINE V loadu(const T* from) {
  V vector;
  std::memcpy(&vector, from, sizeof vector);
  return vector;
}

template <class V, class T> INLINE void storeu(T* to, V vector) {
  std::memcpy(to, &vector, sizeof vector);
}

// BLOCK consecutive elements as two vectors. bfloat16 is deinterleaved into even and odd elements,
// which takes two instructions; other types are split into a first and a second half.
template <class Element> struct Block {
  Vector<Element> half[2];
};

template <class Element> INLINE Block<Element> load(const Element* from) {
  return {loadu<Vector<Element>>(from), loadu<Vector<Element>>(from + LANES)};
}

INLINE Block<BFloat16> load(const BFloat16* from) {
  const UInt32s pairs = loadu<UInt32s>(from);
  return {(Floats)(pairs << 16), (Floats)(pairs & 0xffff0000)};
}

template <class Element> INLINE void store(Element* to, Block<Element> block) {
  storeu(to, block.half[0]);
  storeu(to + LANES, block.half[1]);
}

// Bits of float32 rounded to nearest even at bit 16; the upper half of each lane is the bfloat16.
INLINE UInt32s round_to_bfloat16(Floats vector) {
  const UInt32s bits = (UInt32s)vector;
  return bits + 0x7fff + ((bits >> 16) & 1);
}

INLINE void store(BFloat16* to, Block<BFloat16> block) {
  storeu(to, (round_to_bfloat16(block.half[0]) >> 16) |
                 (round_to_bfloat16(block.half[1]) & 0xffff0000));
}

// The same for blocks in the accumulation type.
template <class Element> INLINE Block<Element> load_acc(const Scalar<Element>* from) {
  return {loadu<Vector<Element>>(from), loadu<Vector<Element>>(from + LANES)};
}

template <class Element> INLINE void store_acc(Scalar<Element>* to, Block<Element> block) {
  storeu(to, block.half[0]);
  storeu(to + LANES, block.half[1]);
}

template <class Element> INLINE Block<Element> scaled(Block<Element> block, Scalar<Element> by) {
  return {block.half[0] * by, block.half[1] * by};
}

// Copies BLOCK elements.
template <class Element> INLINE void copy(Element* to, const Element* from) {
  std::memcpy(to, from, BLOCK * sizeof(Element));
}

// LANES elements in order, converted to and from float32.
INLINE Floats load_lanes(const float* from) { return loadu<Floats>(from); }

INLINE Floats load_lanes(const BFloat16* from) {
  return (Floats)(__builtin_convertvector(loadu<UInt16s>(from), UInt32s) << 16);
}

INLINE void store_lanes(float* to, Floats vector) { storeu(to, vector); }

INLINE void store_lanes(BFloat16* to, Floats vector) {
  storeu(to, __builtin_convertvector(round_to_bfloat16(vector) >> 16, UInt16s));
}

template <class N, int COUNT> struct VectorOf {
  typedef N Vector __attribute__((vector_size(COUNT * sizeof(N))));
};

// Combines the two halves of a vector until one element is left.
template <class N, int COUNT, class Combine>
INLINE N reduce(typename VectorOf<N, COUNT>::Vector vector) {
  if constexpr (COUNT == 2) {
    return Combine::of(vector[0], vector[1]);
  } else {
    typedef typename VectorOf<N, COUNT / 2>::Vector Half;
    const N* lanes = (const N*)&vector;
    return reduce<N, COUNT / 2, Combine>(
        Combine::of(loadu<Half>(lanes), loadu<Half>(lanes + COUNT / 2)));
  }
}

struct Add {
  template <class V> static INLINE V of(V a, V b) { return a + b; }
};

struct Max {
  template <class V> static INLINE V of(V a, V b) { return a > b ? a : b; }
};

template <class N> INLINE N reduce_sum(Vector<N> vector) { return reduce<N, LANES, Add>(vector); }

template <class N> INLINE N reduce_max(Vector<N> vector) { return reduce<N, LANES, Max>(vector); }

// 1.5 * 2^23: adding it to a float32 rounds that to an integer, which `to_int32` extracts.
constexpr float ROUND_MAGIC = 12582912.0f;
INLINE Int32s to_int32(Floats shifted) {
  return (Int32s)shifted - (Int32s)(Floats{} + ROUND_MAGIC);
}

// e^x for x <= 87, with a relative error of 1e-7: 2^n times a polynomial of the remainder, after
// Cephes' expf.
INLINE Floats exponential(Floats x) {
  x = x < -87.0f ? Floats{} - 87.0f : x;
  const Floats shifted = x * 1.44269504f + ROUND_MAGIC;
  const Floats n = shifted - ROUND_MAGIC;
  const Floats rest = x - n * 0.693359375f + n * 2.12194440e-4f;  // log(2) in two parts
  Floats power = rest * 1.9875691500e-4f + 1.3981999507e-3f;
  power = power * rest + 8.3334519073e-3f;
  power = power * rest + 4.1665795894e-2f;
  power = power * rest + 1.6666665459e-1f;
  power = power * rest + 5.0000001201e-1f;
  power = power * rest * rest + rest + 1.0f;
  return power * (Floats)((to_int32(shifted) + 127) << 23);
}

INLINE Doubles exponential(Doubles x) {
  for (int lane = 0; lane < LANES; lane++) x[lane] = std::exp(x[lane]);
  return x;
}

// Prefetches elements that are needed soon. The address need not be valid.
template <class Element> INLINE void prefetch(const Element* from, int64_t count) {
  for (int64_t i = 0; i < count; i += 64 / sizeof(Element)) __builtin_prefetch(from + i, 0, 2);
}

}  // namespace
