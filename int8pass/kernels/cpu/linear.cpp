// LLM.int8() on the CPU as two ops a Linear:
//   cpu_quantize  one or two passes over x: outlier columns, row scales, codes (unsigned, zero point 128)
//   cpu_linear    blocked int8 GEMM whose int32 tiles stay in cache, dequantized with bias and outliers in one store
//
// Weights come packed as [N/64][K/4][64][4] (int8, zero-padded): the VNNI layout, in which one feature's weights over
// 64 outputs share 256 bytes, so that outlier columns are cheap to read. The product of unsigned codes is
// acc - 128 * sum(weights), and stays exact in int32 while K * 255 * 127 < 2^31.

#include <ATen/Parallel.h>
#include <ATen/native/CPUBlas.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "quantize.h"

namespace int8pass {
namespace {

template <typename T>
void gather_original(const T* weight, int64_t outputs, int64_t row_stride, int64_t column_stride, int64_t width_out,
                     const std::vector<int64_t>& columns, float* out) {
  at::parallel_for(0, outputs, 512, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n)
      for (size_t j = 0; j < columns.size(); ++j)
        out[j * width_out + n] = static_cast<float>(weight[n * row_stride + columns[j] * column_stride]);
  });
}

void gather_packed(const int8_t* packed, const float* weight_scale, int64_t outputs, int64_t padded, int64_t width_out,
                   const std::vector<int64_t>& columns, float* out) {
  for (size_t j = 0; j < columns.size(); ++j) {
    const int64_t group = columns[j] / 4, lane = columns[j] % 4;
    for (int64_t start = 0; start < outputs; start += kBlockN) {
      const int8_t* block = packed + start * padded + group * kBlockN * 4 + lane;
      const int64_t count = std::min(kBlockN, outputs - start);
      for (int64_t n = 0; n < count; ++n)
        out[j * width_out + start + n] = static_cast<float>(block[n * 4]) * weight_scale[start + n];
    }
  }
}

// x at the outlier columns, row by row: [M, J], in float; with per_token, entries under the threshold are 0
template <typename T>
void gather_inputs(const T* x, int64_t rows, int64_t width, const std::vector<int64_t>& columns, bool per_token,
                   float threshold, float* out) {
  const int64_t count = static_cast<int64_t>(columns.size());
  at::parallel_for(0, rows, std::max<int64_t>(1, 16384 / count), [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; ++m)
      for (int64_t j = 0; j < count; ++j) {
        const float value = static_cast<float>(x[m * width + columns[j]]);
        out[m * count + j] = !per_token || std::fabs(value) >= threshold ? value : 0.0f;
      }
  });
}

struct Epilogue {
  const int32_t* offset;      // 128 * sum of each output's codes
  const float* weight_scale;  // [N]
  const float* bias;          // [N] or null
  const float* input_scale;   // [M]
  const float* inputs;        // [M, J]
  const float* weights;       // [J, width_out]
  const float* product;       // [M, N], the outlier product where J is large, or null
  int64_t outliers, width_out, outputs;
};

inline void finish_row(const int32_t* __restrict sums, float* __restrict y, int64_t m, int64_t start, int64_t count,
                       const Epilogue& e) {
  const float scale = e.input_scale[m];
  const int32_t* __restrict offset = e.offset + start;
  const float* __restrict weight_scale = e.weight_scale + start;
  for (int64_t n = 0; n < count; ++n) y[n] = static_cast<float>(sums[n] - offset[n]) * weight_scale[n] * scale;
  for (int64_t j = 0; j < e.outliers; ++j) {
    const float value = e.inputs[m * e.outliers + j];
    const float* __restrict weight = e.weights + j * e.width_out + start;
    for (int64_t n = 0; n < count; ++n) y[n] += value * weight[n];
  }
  if (e.product)
    for (int64_t n = 0; n < count; ++n) y[n] += e.product[m * e.outputs + start + n];
  if (e.bias)
    for (int64_t n = 0; n < count; ++n) y[n] += e.bias[start + n];
}

template <typename T>
inline void store_row(const float* __restrict y, T* __restrict out, int64_t count) {
  for (int64_t n = 0; n < count; ++n) out[n] = static_cast<T>(y[n]);
}

template <typename T>
void multiply(const uint8_t* codes, const int8_t* packed, T* out, int64_t rows, int64_t padded, const Epilogue& e) {
  const int64_t row_blocks = (rows + kBlockM - 1) / kBlockM, column_blocks = (e.outputs + kBlockN - 1) / kBlockN;
  // neighbouring tasks share a weight block, which stays in L2 while the rows pass by
  at::parallel_for(0, row_blocks * column_blocks, 1, [&](int64_t begin, int64_t end) {
    alignas(64) int32_t tile[kBlockM * kBlockN];
    alignas(64) float y[kBlockN];
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = task % row_blocks * kBlockM, start = task / row_blocks * kBlockN;
      const int64_t count_m = std::min(kBlockM, rows - first), count_n = std::min(kBlockN, e.outputs - start);
      at::native::cpublas::brgemm(count_m, kBlockN, padded, padded, kBlockN, kBlockN, false, codes + first * padded,
                                  reinterpret_cast<const signed char*>(packed + start * padded), tile, true);
      for (int64_t m = 0; m < count_m; ++m) {
        finish_row(tile + m * kBlockN, y, first + m, start, count_n, e);
        store_row(y, out + (first + m) * e.outputs + start, count_n);
      }
    }
    at::native::cpublas::brgemm_release(true);
  });
}

Tensor cpu_linear(const Tensor& x, const Tensor& codes, const Tensor& scale, const Tensor& outliers,
                  const Tensor& packed, const Tensor& offset, const Tensor& weight_scale,
                  const std::optional<Tensor>& bias, const std::optional<Tensor>& weight, double threshold,
                  bool per_token, at::ScalarType dtype) {
  const int64_t padded = codes.size(-1), outputs = weight_scale.numel(), width = x.size(-1);
  const int64_t rows = scale.numel();
  TORCH_CHECK(packed.size(0) * kBlockN >= outputs && packed.size(1) * 4 == padded && offset.numel() == outputs,
              "cpu_linear: the packed weight does not fit the input");
  TORCH_CHECK(!bias || bias->numel() == outputs, "cpu_linear: bias must be [N]");
  TORCH_CHECK(!weight || (weight->size(0) == outputs && weight->size(1) == width), "cpu_linear: weight must be [N, K]");
  auto shape = x.sizes().vec();
  shape.back() = outputs;
  Tensor out = at::empty(shape, x.options().dtype(dtype));
  if (out.numel() == 0) return out;

  const auto* mask = reinterpret_cast<const uint8_t*>(outliers.const_data_ptr<bool>());
  const std::vector<int64_t> columns = marked(mask, outliers.numel());
  const int64_t count = static_cast<int64_t>(columns.size());
  const int64_t width_out = (outputs + kBlockN - 1) / kBlockN * kBlockN;
  Tensor inputs, weights, product;
  if (count > 0) {
    const Tensor input = x.contiguous();
    inputs = at::empty({rows, count}, input.options().dtype(at::kFloat));
    weights = at::empty({count, width_out}, input.options().dtype(at::kFloat));
    float* weight_rows = weights.data_ptr<float>();
    read_as_type(input, [&](auto* data) {
      gather_inputs(data, rows, width, columns, per_token, static_cast<float>(threshold), inputs.data_ptr<float>());
    });
    if (weight.has_value())
      read_as_type(*weight, [&](auto* data) {
        gather_original(data, outputs, weight->stride(0), weight->stride(1), width_out, columns, weight_rows);
      });
    else
      gather_packed(packed.const_data_ptr<int8_t>(), weight_scale.const_data_ptr<float>(), outputs, padded, width_out,
                    columns, weight_rows);
    if (count > kFewOutliers) {  // out= is not autocast, so an enclosing autocast region cannot round the product
      product = at::empty({rows, outputs}, inputs.options());
      at::mm_out(product, inputs, weights.narrow(1, 0, outputs));
    }
  }
  const Tensor bias_float = bias.has_value() ? bias->to(at::kFloat).contiguous() : Tensor();
  const Epilogue epilogue{offset.const_data_ptr<int32_t>(),
                          weight_scale.const_data_ptr<float>(),
                          bias_float.defined() ? bias_float.const_data_ptr<float>() : nullptr,
                          scale.const_data_ptr<float>(),
                          inputs.defined() ? inputs.const_data_ptr<float>() : nullptr,
                          weights.defined() ? weights.const_data_ptr<float>() : nullptr,
                          product.defined() ? product.const_data_ptr<float>() : nullptr,
                          product.defined() ? 0 : count,
                          width_out,
                          outputs};
  write_as_type(out, [&](auto* data) {
    multiply(codes.const_data_ptr<uint8_t>(), packed.const_data_ptr<int8_t>(), data, rows, padded, epilogue);
  });
  return out;
}

}  // namespace
}  // namespace int8pass

TORCH_LIBRARY_IMPL(int8pass, CPU, library) {
  library.impl("cpu_quantize", &int8pass::cpu_quantize);
  library.impl("cpu_linear", &int8pass::cpu_linear);
}
