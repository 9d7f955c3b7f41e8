// The outlier branch's operands: x at the outlier columns, and their weights in float, from the original weight or
// from its int8 codes.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <c10/util/Half.h>

#include <cmath>
#include <optional>

#include "column_cache.h"
#include "common.h"

namespace int8pass {

// x at the outlier columns, row by row: [M, J], in float; with per_token, entries under the threshold are 0
template <typename T>
void gather_inputs(const T* x, int64_t rows, int64_t width, const std::vector<int64_t>& columns, bool per_token,
                   float threshold, float* out) {
  const int64_t count = static_cast<int64_t>(columns.size());
  at::parallel_for(0, rows, ceil_div(16384, count), [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; ++m)
      for (int64_t j = 0; j < count; ++j) {
        const float value = static_cast<float>(x[m * width + columns[j]]);
        out[m * count + j] = !per_token || std::fabs(value) >= threshold ? value : 0.0f;
      }
  });
}

// A weight as a profile's columns keep it (quantization/columns.py): in float16, in units of its row's int8 scale
inline float in_16_bits(float value, float scale) {
  const float unit = scale == 0.0f ? 1.0f : scale;
  return static_cast<float>(static_cast<at::Half>(value / unit)) * unit;
}

// scale: [N], of a weight that is read in 16 bits, or null. A weight that has 16 bits stays as it is
inline std::vector<Column> gather_original(const Tensor& weight, const std::vector<int64_t>& columns,
                                           const float* scale) {
  const int64_t outputs = weight.size(0), row = weight.stride(0), column = weight.stride(1);
  std::vector<Column> found;
  for (size_t j = 0; j < columns.size(); ++j) found.emplace_back(new float[ceil_div(outputs, kBlockN) * kBlockN]());
  read_as_type(weight, [&](const auto* data) {
    at::parallel_for(0, outputs, 512, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n)
        for (size_t j = 0; j < columns.size(); ++j) {
          const float value = static_cast<float>(data[n * row + columns[j] * column]);
          found[j][n] = sizeof(*data) == sizeof(float) && scale ? in_16_bits(value, scale[n]) : value;
        }
    });
  });
  return found;
}

// The codes of one feature for the 64 outputs of a packed block, in float
inline void codes_of(const int8_t* block, int64_t k, float* __restrict out) {
  const int8_t* __restrict first = block + k / kGroupK * kBlockN * kGroupK + k % kGroupK;
  for (int64_t n = 0; n < kBlockN; ++n) out[n] = static_cast<float>(first[n * kGroupK]);
}

inline std::vector<Column> gather_dequantized(const int8_t* packed, const float* weight_scale, int64_t outputs,
                                              int64_t padded, const std::vector<int64_t>& columns) {
  std::vector<Column> found;
  for (const int64_t k : columns) {
    found.emplace_back(new float[ceil_div(outputs, kBlockN) * kBlockN]());
    for (int64_t start = 0; start < outputs; start += kBlockN) {
      codes_of(packed + start * padded, k, found.back().get() + start);
      for (int64_t n = start; n < std::min(outputs, start + kBlockN); ++n) found.back()[n] *= weight_scale[n];
    }
  }
  return found;
}

// inputs [M, J] times the columns' weights in one float GEMM: [M, N]
inline Tensor outlier_product(const Tensor& inputs, const std::vector<Column>& columns, int64_t outputs) {
  Tensor weights = at::empty({static_cast<int64_t>(columns.size()), outputs}, inputs.options());
  for (size_t j = 0; j < columns.size(); ++j)
    std::memcpy(weights.data_ptr<float>() + j * outputs, columns[j].get(), outputs * sizeof(float));
  Tensor product = at::empty({inputs.size(0), outputs}, inputs.options());
  at::mm_out(product, inputs, weights);  // out= is not autocast, so an enclosing region cannot round the product
  return product;
}

}  // namespace int8pass
