// int32 tiles of signed codes times packed weights in plain C++: exact on every processor, tuned for none.
#pragma once

#include "layout.h"

namespace int8pass::native {

using Code = int8_t;

constexpr int kGroupRows = 1;
constexpr const char* kName = "portable";

struct Scratch {};

// codes: int8 [rows][K]; packed: one block [K/4][64][4]; tile: int32 [rows][64]
inline void multiply_tile(const Code* codes, int64_t rows, const int8_t* packed, int64_t padded, int32_t* tile,
                          Scratch&) {
  for (int64_t m = 0; m < rows; ++m) {
    int32_t* __restrict sums = tile + m * kBlockN;
    std::memset(sums, 0, kBlockN * sizeof *sums);
    for (int64_t k = 0; k < padded; k += kGroupK) {
      const Code* four = codes + m * padded + k;
      const int8_t* __restrict weights = packed + k * kBlockN;
      for (int64_t n = 0; n < kBlockN; ++n)
        for (int64_t i = 0; i < kGroupK; ++i) sums[n] += four[i] * weights[n * kGroupK + i];
    }
  }
}

}  // namespace int8pass::native
