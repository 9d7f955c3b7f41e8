// cpu_quantize: outlier columns, row scales and codes of x, in one pass over it.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <mutex>
#include <tuple>

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

inline uint32_t max_bits(const float* __restrict row, int64_t count) {
  uint32_t most = 0;
  for (int64_t k = 0; k < count; ++k) most = std::max(most, magnitude_bits(row[k]));
  return most;
}

inline void mark_outliers(const float* __restrict x, uint8_t* __restrict outlier, float threshold, int64_t count) {
  for (int64_t k = 0; k < count; ++k) outlier[k] |= static_cast<uint8_t>(std::fabs(x[k]) >= threshold);
}

// Outliers count for nothing in the row's scale and have code 0: both follow from a 0 in their place
inline void zero_outliers(float* __restrict x, float threshold, int64_t count) {
  for (int64_t k = 0; k < count; ++k) x[k] = std::fabs(x[k]) >= threshold ? 0.0f : x[k];
}

// Copies a row in float and returns the bits of its largest magnitude
template <typename T>
inline uint32_t load_row(const T* __restrict x, float* __restrict row, int64_t count) {
  uint32_t most = 0;
  for (int64_t k = 0; k < count; ++k) {
    row[k] = static_cast<float>(x[k]);
    most = std::max(most, magnitude_bits(row[k]));
  }
  return most;
}

inline float scale_from(uint32_t bits) {
  const float scale = from_bits(bits) / kInt8Max;
  if (std::isinf(scale)) return std::numeric_limits<float>::quiet_NaN();
  return scale < std::numeric_limits<float>::min() ? 0.0f : scale;
}

inline void quantize_row(const float* __restrict x, float scale, uint8_t* __restrict codes, int64_t count) {
  for (int64_t k = 0; k < count; ++k) {
    float code = std::nearbyint(x[k] / scale);
    code = code > kInt8Max ? kInt8Max : code;
    code = code < -kInt8Max ? -kInt8Max : code;
    codes[k] = static_cast<uint8_t>(static_cast<int32_t>(code) + kZeroPoint);
  }
}

struct QuantizePlan {
  int64_t rows, width, padded;
  float threshold;
};

// The scale and the codes of a row whose outliers are 0 already. most: the bits of its largest magnitude
inline void finish_quantize(const float* row, uint32_t most, uint8_t* codes, float* scale, const QuantizePlan& plan) {
  *scale = scale_from(most);
  if (*scale > 0.0f) quantize_row(row, *scale, codes, plan.width);
  else std::memset(codes, kZeroPoint, plan.width);
  std::memset(codes + plan.width, kZeroPoint, plan.padded - plan.width);
}

constexpr int64_t kQuantizeGrain = 65536;  // features: fewer take less time than it takes to wake a thread

// Each row with its own outliers left out
template <typename T>
void quantize_rows(const T* x, uint8_t* codes, float* scale, uint8_t* outliers, const QuantizePlan& plan) {
  const bool detect = plan.threshold > 0.0f;
  std::mutex merge;
  at::parallel_for(0, plan.rows, ceil_div(kQuantizeGrain, plan.width), [&](int64_t begin, int64_t end) {
    std::vector<float> row(plan.width);
    std::vector<uint8_t> seen;
    for (int64_t m = begin; m < end; ++m) {
      uint32_t most = load_row(x + m * plan.width, row.data(), plan.width);
      if (detect && most >= magnitude_bits(plan.threshold)) {
        seen.resize(plan.width);
        mark_outliers(row.data(), seen.data(), plan.threshold, plan.width);
        zero_outliers(row.data(), plan.threshold, plan.width);
        most = max_bits(row.data(), plan.width);
      }
      finish_quantize(row.data(), most, codes + m * plan.padded, scale + m, plan);
    }
    if (seen.empty()) return;
    std::lock_guard<std::mutex> guard(merge);
    for (int64_t k = 0; k < plan.width; ++k) outliers[k] |= seen[k];
  });
}

// By column, a feature that is an outlier in another row is left out here too: its code becomes 0, and the row is done
// again where it may have held the row's largest magnitude.
template <typename T>
void leave_out_columns(const T* x, uint8_t* codes, float* scale, const std::vector<int64_t>& columns,
                       const QuantizePlan& plan) {
  constexpr uint8_t kLargest = kZeroPoint + 127, kSmallest = kZeroPoint - 127;
  at::parallel_for(0, plan.rows, ceil_div(kQuantizeGrain, plan.width), [&](int64_t begin, int64_t end) {
    std::vector<float> row(plan.width);
    for (int64_t m = begin; m < end; ++m) {
      uint8_t* const own = codes + m * plan.padded;
      bool again = !(scale[m] > 0.0f);  // no code tells then which features were the largest
      for (const int64_t k : columns) {
        again |= own[k] == kLargest || own[k] == kSmallest;
        own[k] = kZeroPoint;
      }
      if (!again) continue;
      load_row(x + m * plan.width, row.data(), plan.width);
      for (const int64_t k : columns) row[k] = 0.0f;
      finish_quantize(row.data(), max_bits(row.data(), plan.width), own, scale + m, plan);
    }
  });
}

inline std::tuple<Tensor, Tensor, Tensor> cpu_quantize(const Tensor& x, double threshold, bool per_token) {
  const Tensor input = x.contiguous();
  const int64_t width = input.size(-1), rows = width ? input.numel() / width : 0;
  const int64_t padded = (width + 3) / 4 * 4;
  auto shape = input.sizes().vec();
  shape.back() = padded;
  Tensor codes = at::empty(shape, input.options().dtype(at::kByte));
  shape.pop_back();
  Tensor scale = at::empty(shape, input.options().dtype(at::kFloat));
  Tensor outliers = at::zeros({width}, input.options().dtype(at::kBool));
  const QuantizePlan plan{rows, width, padded, static_cast<float>(threshold)};
  read_as_type(input, [&](const auto* data) {
    auto* const marks = reinterpret_cast<uint8_t*>(outliers.data_ptr<bool>());
    quantize_rows(data, codes.data_ptr<uint8_t>(), scale.data_ptr<float>(), marks, plan);
    const std::vector<int64_t> columns = per_token ? std::vector<int64_t>() : marked(marks, width);
    if (!columns.empty())
      leave_out_columns(data, codes.data_ptr<uint8_t>(), scale.data_ptr<float>(), columns, plan);
  });
  return {codes, scale, outliers};
}

}  // namespace int8pass
