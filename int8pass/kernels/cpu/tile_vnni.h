// int32 tiles of unsigned codes times packed weights on AVX-512 VNNI, exact: vpdpbusd adds four products at 32 bits.
// Sums are those of unsigned codes: acc + 128 * sum(weights).
#pragma once

#include <immintrin.h>

#include "layout.h"

namespace int8pass::native {

constexpr const char* kName = "AVX-512 VNNI";
constexpr bool kUnsignedCodes = true;
#if defined(__AMX_INT8__)
constexpr bool kBeatsBrgemm = false;  // oneDNN's uses AMX
#else
constexpr bool kBeatsBrgemm = true;
#endif
constexpr int kGroupRows = 6;          // rows of a register tile: 6 x 64 outputs in 24 of 32 registers
constexpr int64_t kStepGroups = 16;    // feature groups between two prefetches
constexpr int64_t kBytesAhead = 4096;  // how far ahead the weights of few rows are prefetched
constexpr int64_t kGroupBytes = kBlockN * kGroupK;

// Rows that share a register tile
struct RowGroup {
  int64_t rows;
  const uint8_t* codes;  // [rows][4 * groups]
};

struct Scratch {};

// Weights that are brought nearer while others are multiplied: `lines` of 64 bytes at each step
struct Ahead {
  const int8_t* next;
  int64_t lines;

  INT8PASS_INLINE void step() {
    for (int64_t i = 0; i < lines; ++i, next += 64) _mm_prefetch(next, _MM_HINT_T1);
  }
};

// kRows rows times 64 outputs. kStream: these weights come from memory, so their own next lines are fetched
template <int kRows, bool kStream>
__attribute__((noinline)) void register_tile(const uint8_t* codes, const int8_t* packed, int64_t groups, Ahead ahead,
                                             int32_t* tile) {
  const int64_t width = groups * kGroupK;
  __m512i sums[kRows][4];
  unroll<kRows>([&](auto r) INT8PASS_INLINE {
    unroll<4>([&](auto i) INT8PASS_INLINE { sums[r][i] = _mm512_setzero_si512(); });
  });
  const auto multiply = [&](int64_t group) INT8PASS_INLINE {
    const int8_t* place = packed + group * kGroupBytes;
    __m512i weights[4];
    unroll<4>([&](auto i) INT8PASS_INLINE {
      if constexpr (kStream) _mm_prefetch(place + kBytesAhead + i * 64, _MM_HINT_T0);
      weights[i] = _mm512_loadu_si512(place + i * 64);
    });
    unroll<kRows>([&](auto r) INT8PASS_INLINE {
      int32_t four;
      std::memcpy(&four, codes + r * width + group * kGroupK, sizeof four);
      const __m512i spread = _mm512_set1_epi32(four);
      unroll<4>([&](auto i) INT8PASS_INLINE { sums[r][i] = _mm512_dpbusd_epi32(sums[r][i], spread, weights[i]); });
    });
  };
  int64_t group = 0;
  for (; group + kStepGroups <= groups; group += kStepGroups) {
    ahead.step();
    for (int64_t i = 0; i < kStepGroups; ++i) multiply(group + i);
  }
  for (; group < groups; ++group) multiply(group);
  unroll<kRows>([&](auto r) INT8PASS_INLINE {
    unroll<4>([&](auto i) INT8PASS_INLINE { _mm512_store_si512(tile + r * kBlockN + i * 16, sums[r][i]); });
  });
}

template <bool kStream>
void multiply_group(const RowGroup& group, const int8_t* packed, int64_t groups, const Ahead& ahead, int32_t* tile) {
  switch (group.rows) {
    case 1: return register_tile<1, kStream>(group.codes, packed, groups, ahead, tile);
    case 2: return register_tile<2, kStream>(group.codes, packed, groups, ahead, tile);
    case 3: return register_tile<3, kStream>(group.codes, packed, groups, ahead, tile);
    case 4: return register_tile<4, kStream>(group.codes, packed, groups, ahead, tile);
    case 5: return register_tile<5, kStream>(group.codes, packed, groups, ahead, tile);
    default: return register_tile<6, kStream>(group.codes, packed, groups, ahead, tile);
  }
}

// packed: one block [K/4][64][4], which the next block follows; tile: int32 [rows][64]
inline void multiply_tile(const RowGroup* row_groups, int64_t count, const int8_t* packed, int64_t groups,
                          int32_t* tile, Scratch&) {
  constexpr int64_t kFewGroups = 2;  // too little work to hide another block's way from memory
  Ahead ahead{packed + groups * kGroupBytes, 0};
  if (count > kFewGroups) ahead.lines = ceil_div(kStepGroups * kGroupBytes / 64, count);
  const auto multiply = count > kFewGroups ? multiply_group<false> : multiply_group<true>;
  for (int64_t i = 0; i < count; tile += row_groups[i++].rows * kBlockN) {
    multiply(row_groups[i], packed, groups, ahead, tile);
    ahead.next += groups / kStepGroups * ahead.lines * 64;
  }
}

inline RowGroup arrange(const uint8_t* codes, int64_t rows, int64_t, bool, Four*) { return {rows, codes}; }

}  // namespace int8pass::native
