// The int8 codes of features: quotients by a scale, rounded as IEEE division rounds them, then half to even.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "common.h"

namespace int8pass {

// |x| as ordered bits: a NaN sorts above infinity, so a maximum over them never hides it
inline uint32_t magnitude_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits & 0x7fffffffu;
}

inline float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

#if defined(__FMA__) || defined(__aarch64__)
constexpr bool kHasFma = true;
#else
constexpr bool kHasFma = false;
#endif

constexpr int64_t kTogether = 256;  // features whose codes are found to be sure, or not, at once
// Adding it rounds to an integer and leaves code + 128 in the lowest byte
constexpr float kRound = 0x1.8p23f + kZeroPoint;
// |x * (1 / scale) - x / scale| and the rounding of the quotient stay below 2^-16 for quotients up to 127
constexpr float kSure = 0.5f - 0x1p-16f;

// Codes by the reciprocal, which takes a fraction of a division's time. Returns the bits of the largest distance of a
// quotient from its code: up to kSure, x / scale, rounded as IEEE division rounds it, has the same codes.
template <typename T, typename Prepare>
INT8PASS_INLINE inline uint32_t multiply_by_reciprocal(const T* __restrict x, float reciprocal, uint8_t* __restrict codes,
                                                       int64_t count, Prepare prepare) {
  uint32_t farthest = 0;
  for (int64_t k = 0; k < count; ++k) {
    const float value = prepare(static_cast<float>(x[k])), rounded = std::fma(value, reciprocal, kRound);
    farthest = std::max(farthest, magnitude_bits(std::fma(value, reciprocal, kRound - rounded)));
    uint32_t bits;
    std::memcpy(&bits, &rounded, sizeof bits);
    codes[k] = static_cast<uint8_t>(bits);
  }
  return farthest;
}

template <typename T, typename Prepare>
INT8PASS_INLINE inline void divide(const T* __restrict x, float scale, uint8_t* __restrict codes, int64_t count,
                                   Prepare prepare) {
  for (int64_t k = 0; k < count; ++k) {
    const float code = std::nearbyint(prepare(static_cast<float>(x[k])) / scale);
    codes[k] = static_cast<uint8_t>(static_cast<int32_t>(code) + kZeroPoint);
  }
}

// Codes of prepare(x) / scale, whose magnitude is at most 127
template <typename T, typename Prepare>
INT8PASS_INLINE inline void quantize_each(const T* x, float scale, uint8_t* codes, int64_t count, Prepare prepare) {
  if constexpr (!kHasFma) return divide(x, scale, codes, count, prepare);
  const float reciprocal = 1.0f / scale;
  for (int64_t k = 0; k < count; k += kTogether) {
    const int64_t some = std::min(kTogether, count - k);
    const uint32_t farthest = some == kTogether ? multiply_by_reciprocal(x + k, reciprocal, codes + k, kTogether, prepare)
                                                : multiply_by_reciprocal(x + k, reciprocal, codes + k, some, prepare);
    if (farthest > magnitude_bits(kSure)) divide(x + k, scale, codes + k, some, prepare);
  }
}

// No code exceeds 127, as scale is the row's largest magnitude / 127
template <typename T>
inline void quantize_row(const T* x, float scale, uint8_t* codes, int64_t count) {
  quantize_each(x, scale, codes, count, [](float value) INT8PASS_INLINE { return value; });
}

}  // namespace int8pass
