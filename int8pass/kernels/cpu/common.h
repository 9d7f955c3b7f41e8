// What the kernels share: sizes, types, and which outlier columns a mask names.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace int8pass {

using at::Tensor;

constexpr int64_t kBlockN = 64;       // columns of one packed weight block
constexpr int64_t kBlockM = 32;       // rows of one int32 tile: 32 x 64 x 4 bytes stay in L1
constexpr int64_t kFewOutliers = 64;  // above this a separate float GEMM is faster than the epilogue's loop
constexpr float kInt8Max = 127.0f;
constexpr int32_t kZeroPoint = 128;

template <typename Function>
void read_as_type(const Tensor& tensor, Function&& function) {
  if (tensor.scalar_type() == at::kFloat) function(tensor.const_data_ptr<float>());
  else if (tensor.scalar_type() == at::kBFloat16) function(tensor.const_data_ptr<at::BFloat16>());
  else if (tensor.scalar_type() == at::kHalf) function(tensor.const_data_ptr<at::Half>());
  else TORCH_CHECK(false, "expected float32, bfloat16 or float16, not ", tensor.scalar_type());
}

template <typename Function>
void write_as_type(const Tensor& tensor, Function&& function) {
  if (tensor.scalar_type() == at::kFloat) function(tensor.data_ptr<float>());
  else if (tensor.scalar_type() == at::kBFloat16) function(tensor.data_ptr<at::BFloat16>());
  else if (tensor.scalar_type() == at::kHalf) function(tensor.data_ptr<at::Half>());
  else TORCH_CHECK(false, "expected float32, bfloat16 or float16, not ", tensor.scalar_type());
}

inline std::vector<int64_t> marked(const uint8_t* mask, int64_t count) {
  std::vector<int64_t> columns;
  for (int64_t k = 0; k < count; ++k)
    if (mask[k]) columns.push_back(k);
  return columns;
}

}  // namespace int8pass
