// What the kernels share with ATen: types, and which outlier columns a mask names.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "layout.h"

namespace int8pass {

using at::Tensor;

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
  for (int64_t start = 0; start < count; start += 8) {
    uint64_t eight = 0;
    std::memcpy(&eight, mask + start, std::min<int64_t>(8, count - start));
    for (int64_t k = start; eight; ++k, eight >>= 8)
      if (eight & 0xff) columns.push_back(k);
  }
  return columns;
}

inline std::vector<int64_t> nonzero(const std::vector<uint32_t>& marks) {
  std::vector<int64_t> columns;
  for (size_t k = 0; k < marks.size(); ++k)
    if (marks[k]) columns.push_back(static_cast<int64_t>(k));
  return columns;
}

}  // namespace int8pass
