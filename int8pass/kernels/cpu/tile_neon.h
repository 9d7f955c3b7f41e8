// int32 tiles of signed codes times packed weights on 64-bit ARM with dot products (sdot), exact.
#pragma once

#include <arm_neon.h>

#include "layout.h"

namespace int8pass::native {

constexpr const char* kName = "NEON";
constexpr bool kUnsignedCodes = false;
constexpr bool kBeatsBrgemm = false;
constexpr int kGroupRows = 4;  // rows of a register tile: 4 x 16 outputs in 16 of 32 registers

struct RowGroup {
  int64_t rows;
  const Four* x;  // [K/4][rows]
};

struct Scratch {};

// x [groups][kRows], packed [groups][64][4] of which 16 outputs are read -> 16 sums a row
template <int kRows>
void register_tile(const Four* x, const int8_t* packed, int64_t groups, int32_t* tile) {
  int32x4_t sums[kRows][4];
  unroll<kRows>([&](auto r) INT8PASS_INLINE {
    unroll<4>([&](auto i) INT8PASS_INLINE { sums[r][i] = vdupq_n_s32(0); });
  });
  for (int64_t g = 0; g < groups; ++g, x += kRows, packed += kBlockN * kGroupK) {
    int8x16_t weights[4];
    unroll<4>([&](auto i) INT8PASS_INLINE { weights[i] = vld1q_s8(packed + i * 16); });
    unroll<kRows>([&](auto r) INT8PASS_INLINE {
      int32_t codes;
      std::memcpy(&codes, x[r].codes, sizeof codes);
      const int8x16_t spread = vreinterpretq_s8_s32(vdupq_n_s32(codes));
      unroll<4>([&](auto i) INT8PASS_INLINE { sums[r][i] = vdotq_s32(sums[r][i], weights[i], spread); });
    });
  }
  unroll<kRows>([&](auto r) INT8PASS_INLINE {
    unroll<4>([&](auto i) INT8PASS_INLINE { vst1q_s32(tile + r * kBlockN + i * 4, sums[r][i]); });
  });
}

// packed: one block [K/4][64][4]; tile: int32 [rows][64]
inline void multiply_tile(const RowGroup* row_groups, int64_t count, const int8_t* packed, int64_t groups,
                          int32_t* tile, Scratch&) {
  for (int64_t i = 0; i < count; tile += row_groups[i++].rows * kBlockN)
    for (int64_t n = 0; n < kBlockN; n += 16) {
      const int8_t* weights = packed + n * kGroupK;
      switch (row_groups[i].rows) {
        case 1: register_tile<1>(row_groups[i].x, weights, groups, tile + n); break;
        case 2: register_tile<2>(row_groups[i].x, weights, groups, tile + n); break;
        case 3: register_tile<3>(row_groups[i].x, weights, groups, tile + n); break;
        default: register_tile<4>(row_groups[i].x, weights, groups, tile + n);
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
