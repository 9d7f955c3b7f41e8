// The int8 GEMM in tiles of 64 outputs: our own for AVX-512 VNNI, AVX2, NEON or any processor, or oneDNN's (brgemm) where
// that is exact and ours is no match for it: AMX. All read the same packed weights.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/native/CPUBlas.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "common.h"
#include "tile.h"

namespace int8pass {

constexpr int64_t kBrgemmRows = 32;   // rows of one tile: 32 x 64 x 4 bytes stay in L1
constexpr int64_t kNativeRows = 96;   // more rows share the weights that a tile brings into L1
constexpr int64_t kMostRows = kNativeRows + native::kGroupRows;

inline void brgemm(const uint8_t* codes, int64_t rows, const int8_t* packed, int64_t padded, int32_t* tile) {
  at::native::cpublas::brgemm(rows, kBlockN, padded, padded, kBlockN, kBlockN, false, codes,
                              reinterpret_cast<const signed char*>(packed), tile, true);
}

// Multiplies extreme codes: without VNNI or AMX, oneDNN has no such kernel, or one whose sums saturate at 16 bits.
inline bool brgemm_is_exact() {
  constexpr int64_t kFeatures = 256;
  const std::vector<uint8_t> codes(kFeatures, 255);
  const std::vector<int8_t> packed(kFeatures * kBlockN, 127);
  std::vector<int32_t> tile(kBlockN);
  try {
    brgemm(codes.data(), 1, packed.data(), kFeatures, tile.data());
    at::native::cpublas::brgemm_release(true);
  } catch (const c10::Error&) {
    return false;
  }
  return std::all_of(tile.begin(), tile.end(), [](int32_t sum) { return sum == kFeatures * 255 * 127; });
}

inline bool uses_brgemm() {
  static const bool chosen = !native::kBeatsBrgemm && brgemm_is_exact();
  return chosen;
}

// One product of codes and packed weights, tile by tile. Sums of unsigned codes still hold 128 * sum(weights).
class IntegerGemm {
 public:
  IntegerGemm(const uint8_t* codes, const int8_t* packed, int64_t rows, int64_t padded)
      : codes_(codes), packed_(packed), rows_(rows), padded_(padded), brgemm_(uses_brgemm()) {
    if (brgemm_) return;
    together_ = ceil_div(rows, ceil_div(rows, native::kGroupRows));
    tile_rows_ = ceil_div(ceil_div(rows, ceil_div(rows, kNativeRows)), together_) * together_;
    arrange_rows();
  }

  int64_t tile_rows() const { return tile_rows_; }
  bool has_offset() const { return brgemm_ || native::kUnsignedCodes; }

  // What a thread needs while it multiplies
  struct Worker {
    native::Scratch scratch;
    ~Worker() {
      if (uses_brgemm()) at::native::cpublas::brgemm_release(true);
    }
  };

  // first is a multiple of tile_rows(), count at most that
  void multiply(int64_t first, int64_t count, int64_t block, int32_t* tile, Worker& worker) const {
    const int8_t* weights = packed_ + block * kBlockN * padded_;
    if (brgemm_) return brgemm(codes_ + first * padded_, count, weights, padded_, tile);
    const auto* row_groups = row_groups_.data() + first / together_;
    native::multiply_tile(row_groups, ceil_div(count, together_), weights, padded_ / kGroupK, tile, worker.scratch);
  }

 private:
  void arrange_rows() {
    const int64_t groups = padded_ / kGroupK, count = ceil_div(rows_, together_);
    const int64_t grain = native::kUnsignedCodes ? count : ceil_div(32768, together_ * padded_);
    if (!native::kUnsignedCodes) arranged_.reset(new Four[rows_ * groups]);
    row_groups_.resize(count);
    at::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t m = i * together_, rows = std::min(together_, rows_ - m);
        Four* const out = arranged_ ? arranged_.get() + m * groups : nullptr;
        row_groups_[i] = native::arrange(codes_ + m * padded_, rows, groups, rows_ == 1, out);
      }
    });
  }

  const uint8_t* codes_;
  const int8_t* packed_;
  int64_t rows_, padded_, tile_rows_ = kBrgemmRows, together_ = 1;
  bool brgemm_;
  std::unique_ptr<Four[]> arranged_;
  std::vector<native::RowGroup> row_groups_;
};

}  // namespace int8pass
