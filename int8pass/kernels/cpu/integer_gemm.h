// The int8 GEMM in tiles of 64 outputs: oneDNN's (brgemm: VNNI, AMX) where it is exact, else our own for AVX2, NEON or
// any processor. Both read the same packed weights.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/native/CPUBlas.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <string>

#include "common.h"
#include "tile.h"

namespace int8pass {

constexpr int64_t kBrgemmRows = 32;   // rows of one tile: 32 x 64 x 4 bytes stay in L1
constexpr int64_t kNativeRows = 96;   // more rows share the weights that a tile widens; 24 KiB
constexpr int64_t kMostRows = std::max(kBrgemmRows, kNativeRows);

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
  static const bool exact = brgemm_is_exact();
  return exact;
}

// One product of codes and packed weights, tile by tile. Tiles of brgemm still hold 128 * sum(weights).
class IntegerGemm {
 public:
  IntegerGemm(const uint8_t* codes, const int8_t* packed, int64_t rows, int64_t padded)
      : codes_(codes), packed_(packed), rows_(rows), padded_(padded), brgemm_(uses_brgemm()) {
    const int64_t most = brgemm_ ? kBrgemmRows : kNativeRows;
    const int64_t even = ceil_div(rows, ceil_div(rows, most));
    tile_rows_ = brgemm_ ? most : ceil_div(even, native::kGroupRows) * native::kGroupRows;
    if (!brgemm_) arrange_rows();
  }

  int64_t tile_rows() const { return tile_rows_; }
  bool has_offset() const { return brgemm_; }

  // What a thread needs while it multiplies
  struct Worker {
    native::Scratch scratch;
    bool release;
    ~Worker() {
      if (release) at::native::cpublas::brgemm_release(true);
    }
  };

  // first is a multiple of tile_rows(), count at most that
  void multiply(int64_t first, int64_t count, int64_t block, int32_t* tile, Worker& worker) const {
    const int8_t* weights = packed_ + block * kBlockN * padded_;
    if (brgemm_) brgemm(codes_ + first * padded_, count, weights, padded_, tile);
    else native::multiply_tile(arranged_.data() + first * padded_, count, weights, padded_, tile, worker.scratch);
  }

 private:
  void arrange_rows() {
    arranged_.resize(rows_ * padded_);
    const int64_t groups = ceil_div(rows_, native::kGroupRows);
    at::parallel_for(0, groups, ceil_div(32768, native::kGroupRows * padded_), [&](int64_t begin, int64_t end) {
      for (int64_t m = begin * native::kGroupRows; m < std::min(rows_, end * native::kGroupRows); m += native::kGroupRows)
        arrange(codes_ + m * padded_, std::min<int64_t>(native::kGroupRows, rows_ - m), padded_,
                arranged_.data() + m * padded_);
    });
  }

  const uint8_t* codes_;
  const int8_t* packed_;
  int64_t rows_, padded_, tile_rows_;
  bool brgemm_;
  std::vector<native::Code> arranged_;
};

}  // namespace int8pass
