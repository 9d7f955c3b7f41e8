// cpu_quantize_static: codes of x by a scale known beforehand, in one pass over it that looks for no largest magnitude.
#pragma once

#include <tuple>
#include <vector>

#include "quantize.h"

namespace int8pass {

constexpr uint32_t kInfinityBits = 0x7f800000u;

// Returns the bits of the largest magnitude. Values past the range are clamped, before the division. A NaN becomes the
// smallest value, and its row has scale NaN.
template <typename T>
inline uint32_t quantize_row_static(const T* x, float scale, uint8_t* codes, int64_t count) {
  const float limit = kInt8Max * scale;
  uint32_t most = 0;
  quantize_each(x, scale, codes, count, [&](float value) INT8PASS_INLINE {
    most = std::max(most, magnitude_bits(value));
    const float above = value > -limit ? value : -limit;
    return above < limit ? above : limit;
  });
  return most;
}

// The scale is that of the range, but NaN for a row that holds NaN or an infinity outside of the columns
template <typename T>
void quantize_rows_static(const T* x, float range_scale, uint8_t* codes, float* scale,
                          const std::vector<int64_t>& columns, const QuantizePlan& plan) {
  at::parallel_for(0, plan.rows, plan.grain(), [&](int64_t begin, int64_t end) {
    std::vector<float> row(plan.width);
    for (int64_t m = begin; m < end; ++m) {
      const T* const own = x + m * plan.width;
      uint8_t* const to = codes + m * plan.padded;
      uint32_t most = range_scale > 0.0f ? quantize_row_static(own, range_scale, to, plan.width) : max_bits(own, plan.width);
      if (!(range_scale > 0.0f)) std::memset(to, kZeroPoint, plan.width);
      std::memset(to + plan.width, kZeroPoint, plan.padded - plan.width);
      for (const int64_t k : columns) to[k] = kZeroPoint;
      if (most >= kInfinityBits && !columns.empty()) most = copy_without_columns(own, row.data(), columns, plan.width);
      scale[m] = most >= kInfinityBits ? std::numeric_limits<float>::quiet_NaN() : range_scale;
    }
  });
}

inline std::tuple<Tensor, Tensor, Tensor> cpu_quantize_static(const Tensor& x, double range_scale, at::IntArrayRef columns) {
  const Tensor input = x.contiguous();
  Quantized out(input);
  out.mark(columns);
  const QuantizePlan plan{out.rows, out.width, out.padded, 0.0f};
  read_as_type(input, [&](const auto* data) {
    quantize_rows_static(data, static_cast<float>(range_scale), out.codes.data_ptr<uint8_t>(),
                         out.scale.data_ptr<float>(), columns.vec(), plan);
  });
  return {out.codes, out.scale, out.outliers};
}

}  // namespace int8pass
