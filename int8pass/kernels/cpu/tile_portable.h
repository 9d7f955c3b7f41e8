// int32 tiles of signed codes times packed weights in plain C++: exact on every processor, tuned for none.
#pragma once

#include "layout.h"

namespace int8pass::native {

constexpr const char* kName = "portable";
constexpr bool kUnsignedCodes = false;
constexpr bool kBeatsBrgemm = false;
constexpr int kGroupRows = 1;

struct RowGroup {
  int64_t rows;
  const Four* x;  // [K/4][rows]
};

struct Scratch {};

// packed: one block [K/4][64][4]; tile: int32 [rows][64]
inline void multiply_tile(const RowGroup* row_groups, int64_t count, const int8_t* packed, int64_t groups,
                          int32_t* tile, Scratch&) {
  for (int64_t m = 0; m < count; ++m) {
    int32_t* __restrict sums = tile + m * kBlockN;
    std::memset(sums, 0, kBlockN * sizeof *sums);
    for (int64_t g = 0; g < groups; ++g) {
      const int8_t* codes = row_groups[m].x[g].codes;
      const int8_t* __restrict weights = packed + g * kBlockN * kGroupK;
      for (int64_t n = 0; n < kBlockN; ++n)
        for (int64_t i = 0; i < kGroupK; ++i) sums[n] += codes[i] * weights[n * kGroupK + i];
    }
  }
}

// codes [rows][4 * groups] with zero point 128 -> a row group whose x is `out` [groups][rows]
inline RowGroup arrange(const uint8_t* codes, int64_t rows, int64_t groups, bool, Four* out) {
  const std::vector<Four> fours = signed_codes(codes, rows * groups);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t g = 0; g < groups; ++g) out[g * rows + r] = fours[r * groups + g];
  return {rows, out};
}

}  // namespace int8pass::native
