// LLM.int8() on the CPU as one op a Linear, cpu_int8_linear, or as its two halves where Linears share an input:
//   cpu_quantize  one or two passes over x: outlier columns, row scales, codes (unsigned, zero point 128)
//   cpu_linear    blocked int8 GEMM whose int32 tiles stay in cache, dequantized with bias and outliers in one store
// and cpu_column_cache for what a weight keeps between calls.
//
// `known` are outlier columns of a profile: they take the place of those that x has, and their weights are read in 16
// bits.
//
// Weights come packed as [N/64][K/4][64][4] (int8, zero-padded): the VNNI layout, in which one feature's weights over
// 64 outputs share 256 bytes, so that outlier columns are cheap to read. Sums of unsigned codes are
// acc + 128 * sum(weights), and stay exact in int32 while K * 255 * 127 < 2^31.

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>

#include "column_cache.h"
#include "epilogue.h"
#include "integer_gemm.h"
#include "outliers.h"
#include "quantize.h"
#include "static_quantize.h"

namespace int8pass {
namespace {

// A Linear on quantized input. columns: the float weights of the outlier features, or null to take the packed codes
struct Linear {
  const uint8_t* codes;
  const int8_t* packed;
  const int32_t* offset;
  const float *weight_scale, *bias, *input_scale;
  const float* inputs;   // [M, J]
  const float* product;  // [M, N], the outlier product where J is large, or null
  std::vector<int64_t> outliers;
  Columns columns;
  int64_t rows, padded, outputs;
};

// The part of a Linear that belongs to 64 outputs; codes: room for the codes of outlier features
void load_block(const Linear& linear, int64_t block, bool has_offset, float* codes, BlockOfOutputs& out) {
  const int64_t start = block * kBlockN, count = std::min(kBlockN, linear.outputs - start);
  std::memcpy(out.weight_scale, linear.weight_scale + start, count * sizeof(float));
  if (has_offset) std::memcpy(out.offset, linear.offset + start, count * sizeof(int32_t));
  if (linear.bias) std::memcpy(out.bias, linear.bias + start, count * sizeof(float));
  const int64_t outliers = linear.outliers.size();
  if (linear.columns) {
    out.columns = linear.columns.get() + start * outliers;
    for (int64_t n = 0; n < outliers * kBlockN; n += 16) __builtin_prefetch(out.columns + n);
  } else {
    out.columns = codes;
    for (int64_t j = 0; j < outliers; ++j)
      codes_of(linear.packed + start * linear.padded, linear.outliers[j], codes + j * kBlockN);
  }
}

template <typename T>
void run(const Linear& linear, T* out) {
  const IntegerGemm gemm(linear.codes, linear.packed, linear.rows, linear.padded);
  const int64_t row_blocks = ceil_div(linear.rows, gemm.tile_rows()), blocks = ceil_div(linear.outputs, kBlockN);
  const int64_t outliers = static_cast<int64_t>(linear.outliers.size());
  const auto finish = linear.columns ? finish_row<false> : finish_row<true>;
  // neighbouring tasks share a weight block, which stays in L2 while the rows pass by
  at::parallel_for(0, row_blocks * blocks, 1, [&](int64_t begin, int64_t end) {
    IntegerGemm::Worker worker;
    alignas(64) int32_t tile[kMostRows * kBlockN];
    alignas(64) float y[kBlockN], codes[kFewOutliers * kBlockN];
    for (int64_t task = begin; task < end; ++task) {
      const int64_t block = task / row_blocks, first = task % row_blocks * gemm.tile_rows();
      const int64_t start = block * kBlockN, count = std::min(kBlockN, linear.outputs - start);
      const int64_t rows = std::min(gemm.tile_rows(), linear.rows - first);
      BlockOfOutputs loaded;
      load_block(linear, block, gemm.has_offset(), codes, loaded);
      gemm.multiply(first, rows, block, tile, worker);
      for (int64_t m = first; m < first + rows; ++m) {
        T* const to = out + m * linear.outputs + start;
        float* const place = in_place(to, count, y);
        finish(tile + (m - first) * kBlockN, linear.input_scale[m], linear.inputs + m * outliers, outliers, loaded, place);
        if (linear.product)
          for (int64_t n = 0; n < count; ++n) place[n] += linear.product[m * linear.outputs + start + n];
        if (place == y) store_row(y, to, count);
      }
    }
  });
}

// Float weights of a few outlier features, through the weight's cache where it has room for them
Columns original_columns(const Tensor& weight, const std::vector<int64_t>& outliers, const float* scale,
                         ColumnCache* cache) {
  const auto gather = [&](const std::vector<int64_t>& columns) { return gather_original(weight, columns, scale); };
  const int64_t blocks = ceil_div(weight.size(0), kBlockN);
  if (!cache || static_cast<int64_t>(outliers.size()) > cache->capacity()) return block_by_block(gather(outliers), blocks);
  return cache->get(outliers, blocks, gather);
}

std::vector<int64_t> outlier_columns(const Tensor& mask, at::OptionalIntArrayRef known) {
  return known ? known->vec() : marked(reinterpret_cast<const uint8_t*>(mask.const_data_ptr<bool>()), mask.numel());
}

Tensor cpu_linear(const Tensor& x, const Tensor& codes, const Tensor& scale, const Tensor& mask, const Tensor& packed,
                  const Tensor& offset, const Tensor& weight_scale, const std::optional<Tensor>& bias,
                  const std::optional<Tensor>& weight, const std::optional<Tensor>& cache, double threshold,
                  bool per_token, at::ScalarType dtype, at::OptionalIntArrayRef known) {
  const int64_t padded = codes.size(-1), outputs = weight_scale.numel(), width = x.size(-1), rows = scale.numel();
  TORCH_CHECK(packed.size(0) * kBlockN >= outputs && packed.size(1) * kGroupK == padded && offset.numel() == outputs,
              "cpu_linear: the packed weight does not fit the input");
  TORCH_CHECK(!bias || bias->numel() == outputs, "cpu_linear: bias must be [N]");
  TORCH_CHECK(!weight || (weight->size(0) == outputs && weight->size(1) == width), "cpu_linear: weight must be [N, K]");
  auto shape = x.sizes().vec();
  shape.back() = outputs;
  Tensor out = at::empty(shape, x.options().dtype(dtype));
  if (out.numel() == 0) return out;

  const Tensor bias_float = bias.has_value() ? bias->to(at::kFloat).contiguous() : Tensor();
  Linear linear{codes.const_data_ptr<uint8_t>(),
                packed.const_data_ptr<int8_t>(),
                offset.const_data_ptr<int32_t>(),
                weight_scale.const_data_ptr<float>(),
                bias_float.defined() ? bias_float.const_data_ptr<float>() : nullptr,
                scale.const_data_ptr<float>(),
                nullptr,
                nullptr,
                outlier_columns(mask, known),
                {},
                rows,
                padded,
                outputs};
  Tensor inputs, product;
  if (const int64_t count = linear.outliers.size(); count > 0) {
    const float* const in_16_bits = known ? linear.weight_scale : nullptr;
    const Tensor input = x.contiguous();
    inputs = at::empty({rows, count}, input.options().dtype(at::kFloat));
    read_as_type(input, [&](const auto* data) {
      gather_inputs(data, rows, width, linear.outliers, per_token, static_cast<float>(threshold),
                    inputs.data_ptr<float>());
    });
    linear.inputs = inputs.const_data_ptr<float>();
    if (count > kFewOutliers) {
      const auto columns = weight.has_value() ? gather_original(*weight, linear.outliers, in_16_bits)
                                              : gather_dequantized(linear.packed, linear.weight_scale, outputs, padded,
                                                                   linear.outliers);
      product = outlier_product(inputs, columns, outputs);
      linear.product = product.const_data_ptr<float>();
      linear.outliers.clear();
    } else if (weight.has_value()) {
      linear.columns = original_columns(*weight, linear.outliers, in_16_bits, ColumnCache::in(cache));
    }
  }
  write_as_type(out, [&](auto* data) { run(linear, data); });
  return out;
}

Tensor cpu_int8_linear(const Tensor& x, const Tensor& packed, const Tensor& offset, const Tensor& weight_scale,
                       const std::optional<Tensor>& bias, const std::optional<Tensor>& weight,
                       const std::optional<Tensor>& cache, double threshold, bool per_token, at::ScalarType dtype,
                       at::OptionalIntArrayRef known) {
  const Tensor input = x.contiguous();
  const auto [codes, scale, mask] = cpu_quantize(input, threshold, per_token, known);
  return cpu_linear(input, codes, scale, mask, packed, offset, weight_scale, bias, weight, cache, threshold, per_token,
                    dtype, known);
}

Tensor cpu_static_linear(const Tensor& x, const Tensor& packed, const Tensor& offset, const Tensor& weight_scale,
                         const std::optional<Tensor>& bias, const std::optional<Tensor>& weight,
                         const std::optional<Tensor>& cache, double scale, at::IntArrayRef columns, at::ScalarType dtype) {
  const Tensor input = x.contiguous();
  const auto [codes, scales, mask] = cpu_quantize_static(input, scale, columns);
  return cpu_linear(input, codes, scales, mask, packed, offset, weight_scale, bias, weight, cache, 0.0, false, dtype,
                    columns);
}

Tensor column_cache_counts(const Tensor& handle) {
  ColumnCache* cache = ColumnCache::in(handle);
  TORCH_CHECK(cache, "cpu_column_cache_counts: this tensor holds no column cache");
  return cache->counts();
}

std::string integer_gemm_name() { return uses_brgemm() ? "oneDNN brgemm" : native::kName; }

}  // namespace
}  // namespace int8pass

TORCH_LIBRARY_IMPL(int8pass, CPU, library) {
  library.impl("cpu_quantize", &int8pass::cpu_quantize);
  library.impl("cpu_linear", &int8pass::cpu_linear);
  library.impl("cpu_quantize_static", &int8pass::cpu_quantize_static);
  library.impl("cpu_static_linear", &int8pass::cpu_static_linear);
  library.impl("cpu_int8_linear", &int8pass::cpu_int8_linear);
  library.impl("cpu_column_cache_counts", &int8pass::column_cache_counts);
}

TORCH_LIBRARY_IMPL(int8pass, CompositeExplicitAutograd, library) {
  library.impl("cpu_column_cache", &int8pass::ColumnCache::make);
  library.impl("cpu_integer_gemm", &int8pass::integer_gemm_name);
}
