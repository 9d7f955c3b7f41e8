// int32 tiles of signed codes times packed weights on 64-bit ARM with dot products (sdot), exact.
#pragma once

#include <arm_neon.h>

#include "layout.h"

namespace int8pass::native {

using Code = int8_t;

constexpr int kGroupRows = 4;  // rows of a register tile: 4 x 16 outputs in 16 of 32 registers
constexpr const char* kName = "NEON";

struct Scratch {};

// codes [groups][kRows][4], packed [groups][64][4] of which 16 outputs are read -> 16 sums a row
template <int kRows>
void register_tile(const int8_t* codes, const int8_t* packed, int64_t groups, int32_t* tile) {
  int32x4_t sums[kRows][4];
  unroll<kRows>([&](auto r) INT8PASS_INLINE { unroll<4>([&](auto i) INT8PASS_INLINE { sums[r][i] = vdupq_n_s32(0); }); });
  for (int64_t g = 0; g < groups; ++g, codes += kRows * kGroupK, packed += kBlockN * kGroupK) {
    int8x16_t weights[4];
    unroll<4>([&](auto i) INT8PASS_INLINE { weights[i] = vld1q_s8(packed + i * 16); });
    unroll<kRows>([&](auto r) INT8PASS_INLINE {
      int32_t four;
      std::memcpy(&four, codes + r * kGroupK, sizeof four);
      const int8x16_t spread = vreinterpretq_s8_s32(vdupq_n_s32(four));
      unroll<4>([&](auto i) INT8PASS_INLINE { sums[r][i] = vdotq_s32(sums[r][i], weights[i], spread); });
    });
  }
  unroll<kRows>([&](auto r) INT8PASS_INLINE {
    unroll<4>([&](auto i) INT8PASS_INLINE { vst1q_s32(tile + r * kBlockN + i * 4, sums[r][i]); });
  });
}

// codes: row groups as `arrange` leaves them, for all K; packed: one block [K/4][64][4]; tile: int32 [rows][64]
inline void multiply_tile(const Code* codes, int64_t rows, const int8_t* packed, int64_t padded, int32_t* tile,
                          Scratch&) {
  const int64_t groups = padded / kGroupK;
  for (int64_t m = 0; m < rows; m += kGroupRows) {
    const Code* start = codes + m * padded;
    for (int64_t n = 0; n < kBlockN; n += 16) {
      const int8_t* weights = packed + n * kGroupK;
      int32_t* out = tile + m * kBlockN + n;
      switch (std::min<int64_t>(kGroupRows, rows - m)) {
        case 1: register_tile<1>(start, weights, groups, out); break;
        case 2: register_tile<2>(start, weights, groups, out); break;
        case 3: register_tile<3>(start, weights, groups, out); break;
        default: register_tile<4>(start, weights, groups, out);
      }
    }
  }
}

}  // namespace int8pass::native
