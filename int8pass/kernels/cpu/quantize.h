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

#include "codes.h"
#include "common.h"

namespace int8pass {

// The bits of the largest magnitude
template <typename T>
inline uint32_t max_bits(const T* __restrict x, int64_t count) {
  uint32_t most = 0;
  for (int64_t k = 0; k < count; ++k) most = std::max(most, magnitude_bits(static_cast<float>(x[k])));
  return most;
}

// Outliers count for nothing in the row's scale and have code 0: both follow from a 0 in their place. Marks them, and
// returns the bits of the largest magnitude that is left.
template <typename T>
inline uint32_t copy_without_outliers(const T* __restrict x, float* __restrict row, uint32_t* __restrict seen,
                                      float threshold, int64_t count) {
  for (int64_t k = 0; k < count; ++k) {
    const float value = static_cast<float>(x[k]);
    row[k] = std::fabs(value) >= threshold ? 0.0f : value;
    seen[k] |= std::fabs(value) >= threshold ? 1u : 0u;
  }
  return max_bits(row, count);
}

inline float scale_from(uint32_t bits) {
  const float scale = from_bits(bits) / kInt8Max;
  if (std::isinf(scale)) return std::numeric_limits<float>::quiet_NaN();
  return scale < std::numeric_limits<float>::min() ? 0.0f : scale;
}

constexpr int64_t kQuantizeGrain = 131072;  // features: fewer take less time than it takes to wake a thread

struct QuantizePlan {
  int64_t rows, width, padded;
  float threshold;

  int64_t grain() const { return ceil_div(kQuantizeGrain, std::max<int64_t>(width, 1)); }
};

// The scale and the codes of a row whose outliers are 0 already. most: the bits of its largest magnitude
template <typename T>
inline void finish_quantize(const T* row, uint32_t most, uint8_t* codes, float* scale, const QuantizePlan& plan) {
  *scale = scale_from(most);
  if (*scale > 0.0f) quantize_row(row, *scale, codes, plan.width);
  else std::memset(codes, kZeroPoint, plan.width);
  std::memset(codes + plan.width, kZeroPoint, plan.padded - plan.width);
}

// The row with some columns left out; returns the bits of the largest magnitude that is left
template <typename T>
inline uint32_t copy_without_columns(const T* x, float* row, const std::vector<int64_t>& columns, int64_t count) {
  for (int64_t k = 0; k < count; ++k) row[k] = static_cast<float>(x[k]);
  for (const int64_t k : columns) row[k] = 0.0f;
  return max_bits(row, count);
}

// A row with some columns left out. row: room for its features in float
template <typename T>
inline void quantize_without(const T* x, float* row, const std::vector<int64_t>& columns, uint8_t* codes, float* scale,
                             const QuantizePlan& plan) {
  const uint32_t most = copy_without_columns(x, row, columns, plan.width);
  finish_quantize(row, most, codes, scale, plan);
}

// Each row with its own outliers left out. By column, those of rows before it too: outlier features are few and the same
// in most rows, so that a row is mostly done without a search
template <typename T>
void quantize_rows(const T* x, uint8_t* codes, float* scale, uint8_t* outliers, bool per_token,
                   const QuantizePlan& plan) {
  const uint32_t least = plan.threshold > 0.0f ? magnitude_bits(plan.threshold) : std::numeric_limits<uint32_t>::max();
  std::mutex merge;
  at::parallel_for(0, plan.rows, plan.grain(), [&](int64_t begin, int64_t end) {
    std::vector<float> row;
    std::vector<uint32_t> seen;  // as wide as a feature, or the loop over them would not vectorize
    std::vector<int64_t> columns;
    for (int64_t m = begin; m < end; ++m) {
      const T* const own = x + m * plan.width;
      const auto finish = [&](const auto* values, uint32_t most) {
        finish_quantize(values, most, codes + m * plan.padded, scale + m, plan);
      };
      const bool has_copy = !columns.empty();
      const uint32_t most = has_copy ? copy_without_columns(own, row.data(), columns, plan.width) : max_bits(own, plan.width);
      if (most < least) {
        has_copy ? finish(row.data(), most) : finish(own, most);
        continue;
      }
      row.resize(plan.width);
      seen.resize(plan.width);
      finish(row.data(), copy_without_outliers(own, row.data(), seen.data(), plan.threshold, plan.width));
      if (!per_token && m + 1 < end) columns = nonzero(seen);
    }
    if (seen.empty()) return;
    std::lock_guard<std::mutex> guard(merge);
    for (int64_t k = 0; k < plan.width; ++k) outliers[k] |= static_cast<uint8_t>(seen[k]);
  });
}

// By column, a feature that is an outlier in another row is left out here too: its code becomes 0, and the row is done
// again where it may have held the row's largest magnitude.
template <typename T>
void leave_out_columns(const T* x, uint8_t* codes, float* scale, const std::vector<int64_t>& columns,
                       const QuantizePlan& plan) {
  constexpr uint8_t kLargest = kZeroPoint + 127, kSmallest = kZeroPoint - 127;
  std::vector<int64_t> again;
  for (int64_t m = 0; m < plan.rows; ++m) {
    uint8_t* const own = codes + m * plan.padded;
    bool unsure = !(scale[m] > 0.0f);  // no code tells then which features were the largest
    for (const int64_t k : columns) {
      unsure |= own[k] == kLargest || own[k] == kSmallest;
      own[k] = kZeroPoint;
    }
    if (unsure) again.push_back(m);
  }
  at::parallel_for(0, again.size(), plan.grain(), [&](int64_t begin, int64_t end) {
    std::vector<float> row(plan.width);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t m = again[i];
      quantize_without(x + m * plan.width, row.data(), columns, codes + m * plan.padded, scale + m, plan);
    }
  });
}

// The columns are known beforehand, whatever x holds
template <typename T>
void quantize_rows_without(const T* x, uint8_t* codes, float* scale, const std::vector<int64_t>& columns,
                           const QuantizePlan& plan) {
  at::parallel_for(0, plan.rows, plan.grain(), [&](int64_t begin, int64_t end) {
    std::vector<float> row(plan.width);
    for (int64_t m = begin; m < end; ++m)
      quantize_without(x + m * plan.width, row.data(), columns, codes + m * plan.padded, scale + m, plan);
  });
}

// What x [..., K] becomes: codes uint8[..., K padded], scale float32[...], outlier columns bool[K]
struct Quantized {
  explicit Quantized(const Tensor& x) : width(x.size(-1)), rows(width ? x.numel() / width : 0) {
    auto shape = x.sizes().vec();
    shape.back() = padded = ceil_div(width, kGroupK) * kGroupK;
    codes = at::empty(shape, x.options().dtype(at::kByte));
    shape.pop_back();
    scale = at::empty(shape, x.options().dtype(at::kFloat));
    outliers = at::zeros({width}, x.options().dtype(at::kBool));
  }

  uint8_t* marks() { return reinterpret_cast<uint8_t*>(outliers.data_ptr<bool>()); }

  void mark(at::IntArrayRef columns) {
    for (const int64_t k : columns) {
      TORCH_CHECK(0 <= k && k < width, "int8pass: outlier column ", k, " of ", width);
      marks()[k] = 1;
    }
  }

  int64_t width, rows, padded;
  Tensor codes, scale, outliers;
};

// known: outlier columns given beforehand, in place of those that x has
inline std::tuple<Tensor, Tensor, Tensor> cpu_quantize(const Tensor& x, double threshold, bool per_token,
                                                       at::OptionalIntArrayRef known) {
  const Tensor input = x.contiguous();
  Quantized out(input);
  if (known) out.mark(*known);
  const QuantizePlan plan{out.rows, out.width, out.padded, static_cast<float>(threshold)};
  read_as_type(input, [&](const auto* data) {
    auto* const codes = out.codes.data_ptr<uint8_t>();
    auto* const scale = out.scale.data_ptr<float>();
    if (known) return quantize_rows_without(data, codes, scale, known->vec(), plan);
    quantize_rows(data, codes, scale, out.marks(), per_token, plan);
    if (per_token || out.rows == 1) return;  // a row alone has left out its own
    const std::vector<int64_t> columns = marked(out.marks(), out.width);
    if (!columns.empty()) leave_out_columns(data, codes, scale, columns, plan);
  });
  return {out.codes, out.scale, out.outliers};
}

}  // namespace int8pass
