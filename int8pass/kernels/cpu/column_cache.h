// Outlier columns of a float weight, kept between calls: one column of a row-major weight costs a cache line for each of
// its N values. Those of the last call lie together once more, block by block, as the next call most often reads them. A
// cache belongs to one weight and lives in the storage of a tensor, so that a graph can take it as an input and it dies
// with the weight.
#pragma once

#include <ATen/ops/from_blob.h>
#include <ATen/ops/tensor.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <mutex>
#include <unordered_map>

#include "common.h"

namespace int8pass {

using Column = std::shared_ptr<float[]>;  // the weights of one feature, N rounded up to 64
using Columns = std::shared_ptr<const float[]>;  // of J features, in the order of reading: [N/64][J][64]

inline Columns block_by_block(const std::vector<Column>& columns, int64_t blocks) {
  const std::shared_ptr<float[]> together(new float[blocks * columns.size() * kBlockN]);
  float* to = together.get();
  for (int64_t block = 0; block < blocks; ++block)
    for (const Column& column : columns) {
      std::memcpy(to, column.get() + block * kBlockN, kBlockN * sizeof(float));
      to += kBlockN;
    }
  return together;
}

constexpr int64_t kCacheBytes = 256;  // of the tensor that holds a cache

class alignas(kCacheBytes) ColumnCache {
 public:
  explicit ColumnCache(int64_t capacity) : self_(this), capacity_(capacity) {}

  // The cache in a tensor's storage; null where there is none, or the tensor is a copy
  static ColumnCache* in(const std::optional<Tensor>& handle) {
    if (!handle.has_value() || handle->nbytes() != kCacheBytes) return nullptr;
    auto* cache = reinterpret_cast<ColumnCache*>(handle->data_ptr());
    return cache->self_ == cache ? cache : nullptr;
  }

  static Tensor make(int64_t capacity) {
    TORCH_CHECK(capacity > 0, "cpu_column_cache: capacity must be positive, not ", capacity);
    auto* cache = new ColumnCache(capacity);
    const auto destroy = [](void* place) { delete static_cast<ColumnCache*>(place); };
    return at::from_blob(cache, {kCacheBytes}, destroy, at::TensorOptions(at::kByte));
  }

  int64_t capacity() const { return capacity_; }

  // The columns asked for, at most `capacity`, of so many blocks of outputs. Those that are not held come from
  // gather(missing) -> columns.
  template <typename Gather>
  Columns get(const std::vector<int64_t>& wanted, int64_t blocks, Gather&& gather) {
    std::lock_guard<std::mutex> guard(lock_);
    ++calls_;
    if (wanted == last_wanted_) {
      hits_ += static_cast<int64_t>(wanted.size());
      return last_;
    }
    for (const int64_t k : last_wanted_) held_.at(k).used = calls_ - 1;
    std::vector<int64_t> missing;
    for (const int64_t k : wanted)
      if (const auto held = held_.find(k); held == held_.end()) missing.push_back(k);
      else held->second.used = calls_;
    hits_ += static_cast<int64_t>(wanted.size() - missing.size());
    misses_ += static_cast<int64_t>(missing.size());
    if (!missing.empty()) insert(missing, gather(missing));
    std::vector<Column> columns;
    for (const int64_t k : wanted) columns.push_back(held_.at(k).column);
    bytes_ = static_cast<int64_t>(held_.size() + columns.size()) * blocks * kBlockN * sizeof(float);
    last_ = block_by_block(columns, blocks);
    last_wanted_ = wanted;
    return last_;
  }

  // int64 [4]: columns found, columns gathered, columns held, bytes of those and of the last call
  Tensor counts() {
    std::lock_guard<std::mutex> guard(lock_);
    return at::tensor({hits_, misses_, static_cast<int64_t>(held_.size()), bytes_}, at::kLong);
  }

 private:
  struct Held {
    Column column;
    int64_t used;
  };

  // Those that have not been used for longest make room; those of this call are the newest
  void insert(const std::vector<int64_t>& missing, std::vector<Column> columns) {
    while (static_cast<int64_t>(held_.size() + missing.size()) > capacity_)
      held_.erase(std::min_element(held_.begin(), held_.end(),
                                   [](const auto& a, const auto& b) { return a.second.used < b.second.used; }));
    for (size_t i = 0; i < missing.size(); ++i) held_[missing[i]] = {std::move(columns[i]), calls_};
  }

  ColumnCache* const self_;
  const int64_t capacity_;
  std::mutex lock_;
  std::unordered_map<int64_t, Held> held_;
  std::vector<int64_t> last_wanted_;  // of the last call, whose columns most often serve the next one too
  Columns last_;
  int64_t calls_ = 0, hits_ = 0, misses_ = 0, bytes_ = 0;
};

static_assert(sizeof(ColumnCache) == kCacheBytes);

}  // namespace int8pass
