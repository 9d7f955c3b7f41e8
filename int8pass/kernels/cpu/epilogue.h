// From int32 tiles to outputs: dequantize, add the outlier features and the bias, round once, store.
#pragma once

#include <ATen/core/Tensor.h>

#include <type_traits>

#include "common.h"

namespace int8pass {

// As many numbers as a register holds
#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
typedef float Floats __attribute__((vector_size(kLanes * sizeof(float)), aligned(4)));
typedef int32_t Ints __attribute__((vector_size(kLanes * sizeof(int32_t)), aligned(4)));

// What belongs to one block of 64 outputs, padded with zeros
struct BlockOfOutputs {
  alignas(64) int32_t offset[kBlockN] = {};
  alignas(64) float weight_scale[kBlockN] = {};
  alignas(64) float bias[kBlockN] = {};
  const float* columns;  // the block's weights of the outlier features: [J][64]
};

// y = (sums - offset) * weight_scale * input_scale + outliers + bias, for 64 outputs of a row.
// weight_scale first: |sum| >= 1 there, so that no product underflows before the last one
template <bool kDequantized>
inline void finish_row(const int32_t* sums, float input_scale, const float* inputs, int64_t outliers,
                       const BlockOfOutputs& block, float* y) {
  constexpr int kTogether = 4;
  for (int64_t n = 0; n < kBlockN; n += kTogether * kLanes) {
    Floats total[kTogether], scale[kTogether];
    unroll<kTogether>([&](auto i) INT8PASS_INLINE {
      const auto at = [&](const auto* data) { return data + n + i * kLanes; };
      scale[i] = *reinterpret_cast<const Floats*>(at(block.weight_scale));
      const Ints product = *reinterpret_cast<const Ints*>(at(sums)) - *reinterpret_cast<const Ints*>(at(block.offset));
      total[i] = __builtin_convertvector(product, Floats) * scale[i] * input_scale;
    });
    for (int64_t j = 0; j < outliers; ++j)
      unroll<kTogether>([&](auto i) INT8PASS_INLINE {
        const Floats weight = *reinterpret_cast<const Floats*>(block.columns + j * kBlockN + n + i * kLanes);
        total[i] += inputs[j] * (kDequantized ? weight * scale[i] : weight);
      });
    unroll<kTogether>([&](auto i) INT8PASS_INLINE {
      total[i] += *reinterpret_cast<const Floats*>(block.bias + n + i * kLanes);
      *reinterpret_cast<Floats*>(y + n + i * kLanes) = total[i];
    });
  }
}

// Where a row of float32 outputs is computed: in place if all of it is wanted
template <typename T>
inline float* in_place(T* to, int64_t count, float* otherwise) {
  if constexpr (std::is_same_v<T, float>) return count == kBlockN ? to : otherwise;
  return otherwise;
}

template <typename T>
inline void store_row(const float* __restrict y, T* __restrict out, int64_t count) {
  for (int64_t n = 0; n < count; ++n) out[n] = static_cast<T>(y[n]);
}

// Round half to even on the bits, which vectorizes; a NaN keeps its upper bits and stays one
inline void store_row(const float* __restrict y, at::BFloat16* __restrict out, int64_t count) {
  auto* __restrict halves = reinterpret_cast<uint16_t*>(out);
  for (int64_t n = 0; n < count; ++n) {
    uint32_t bits;
    std::memcpy(&bits, y + n, sizeof bits);
    const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    const uint32_t quiet = bits >> 16 | 0x40;
    halves[n] = static_cast<uint16_t>((bits & 0x7fffffff) > 0x7f800000 ? quiet : rounded);
  }
}

}  // namespace int8pass
