// What linear layers have in common: their arguments, quantisation of inputs, and GELU.
#pragma once

#include <cstdint>

#include "vectors.h"

namespace {

// Mirrored in abi.py. Weights and workspaces are laid out by each kernel.
struct LinearArgs {
  int64_t rows, inputs, outputs;
  int64_t blocks, depth;
  int64_t gelu;        // whether to apply GELU (tanh form) to the output
  const void* input;   // [rows, inputs]
  const char* weight;
  const float* scale;  // [outputs]: int8 weights only
  const void* bias;    // [outputs]
  char* tiles;         // workspace: the inputs in the layout of the kernel
  float* steps;        // workspace [rows]: int8 weights only
  void* sums;          // workspace
  void* output;        // [rows, outputs]
};

constexpr int MAX_LEVEL = 126;      // 8-bit level of a row's largest number
constexpr float MIN_STEP = 1e-20f;  // keeps a row of zeros at zero

INLINE int64_t ceil_div(int64_t count, int64_t size) { return (count + size - 1) / size; }

INLINE float to_float(float x) { return x; }

INLINE float to_float(BFloat16 x) {
  const uint32_t bits = (uint32_t)x.bits << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// The step of a row, x = level * step. NaN or infinite inputs make it NaN.
template <class Element> INLINE float quantisation_step(const Element* input, int64_t inputs) {
  Floats max = {}, poison = {};
  int64_t i = 0;
  for (; i + LANES <= inputs; i += LANES) {
    const Floats x = load_lanes(input + i);
    const Floats size = x < 0.0f ? -x : x;
    max = size > max ? size : max;
    poison += x * 0.0f;
  }
  float top = reduce_max<float>(max), rest = reduce_sum<float>(poison);
  for (; i < inputs; i++) {
    const float x = to_float(input[i]), size = x < 0.0f ? -x : x;
    top = size > top ? size : top;
    rest += x * 0.0f;
  }
  top /= MAX_LEVEL;
  return (top < MIN_STEP ? MIN_STEP : top) + rest;
}

INLINE Floats gelu(Floats x) {
  const Floats twice = -1.5957691216f * (x + 0.044715f * x * x * x);
  return x / (1.0f + exponential(twice > 87.0f ? Floats{} + 87.0f : twice));
}

}  // namespace
