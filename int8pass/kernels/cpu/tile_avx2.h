// int32 tiles of signed codes times packed weights on AVX2, exact. 8-bit multiplies of AVX2 (vpmaddubsw) saturate, so
// that codes are multiplied as 16-bit numbers: vpmaddwd adds pairs of products to 32 bits. One row is too little work
// to widen the weights for; there |x| * (w with the sign of x) stays below 2^15 for every pair, and vpmaddubsw is exact.
#pragma once

#include <immintrin.h>

#include "layout.h"

namespace int8pass::native {

using Code = int16_t;

constexpr int kGroupRows = 6;          // rows of a register tile: 6 x 8 outputs in 12 of 16 registers
constexpr int64_t kPanelGroups = 64;   // features * 4 of weights widened at a time: 32 KiB, which stay in cache
constexpr const char* kName = "AVX2";

struct Scratch {
  alignas(64) int16_t panel[kPanelGroups * kGroupK * kBlockN];
};

// The instructions are spelled out, since the compiler would keep sums in memory and copy registers
INT8PASS_INLINE inline void multiply_add(__m256i& sum, __m256i weights, __m256i codes) {
  __m256i product;
  asm volatile("vpmaddwd %2, %3, %1\n\tvpaddd %1, %0, %0" : "+x"(sum), "=&x"(product) : "x"(weights), "x"(codes));
}

INT8PASS_INLINE inline __m256i broadcast(const int16_t* four) {
  __m256i result;
  asm volatile("vpbroadcastq %1, %0" : "=x"(result) : "m"(*reinterpret_cast<const int64_t*>(four)));
  return result;
}

// codes [groups][kRows][4], weights [groups][2][16] -> sums of 8 outputs a row, stored or added
template <int kRows>
__attribute__((noinline)) void register_tile(const int16_t* codes, const int16_t* weights, int64_t groups,
                                             int32_t* tile, bool add) {
  __m256i sums[kRows][2];  // each holds 4 outputs as two partial sums
  unroll<kRows>([&](auto r) INT8PASS_INLINE { sums[r][0] = sums[r][1] = _mm256_setzero_si256(); });
  for (int64_t g = 0; g < groups; ++g, codes += kRows * kGroupK, weights += 32) {
    const __m256i low = _mm256_load_si256(reinterpret_cast<const __m256i*>(weights));
    const __m256i high = _mm256_load_si256(reinterpret_cast<const __m256i*>(weights + 16));
    unroll<kRows>([&](auto r) INT8PASS_INLINE {
      const __m256i four = broadcast(codes + r * kGroupK);
      multiply_add(sums[r][0], low, four);
      multiply_add(sums[r][1], high, four);
    });
  }
  unroll<kRows>([&](auto r) INT8PASS_INLINE {
    const __m256i paired = _mm256_hadd_epi32(sums[r][0], sums[r][1]);
    __m256i outputs = _mm256_permute4x64_epi64(paired, 0xd8);
    auto* place = reinterpret_cast<__m256i*>(tile + r * kBlockN);
    if (add) outputs = _mm256_add_epi32(outputs, _mm256_load_si256(place));
    _mm256_store_si256(place, outputs);
  });
}

// packed [groups][64][4] -> panel [8][groups][2][16], so that a register tile reads it from end to end
inline void widen(const int8_t* packed, int64_t groups, int16_t* panel) {
  for (int64_t g = 0; g < groups; ++g)
    unroll<16>([&](auto i) INT8PASS_INLINE {
      const __m128i narrow = _mm_loadu_si128(reinterpret_cast<const __m128i*>(packed + g * kBlockN * kGroupK + i * 16));
      auto* place = reinterpret_cast<__m256i*>(panel + (i / 2 * groups + g) * 32 + i % 2 * 16);
      _mm256_store_si256(place, _mm256_cvtepi8_epi16(narrow));
    });
}

inline void one_row(const int16_t* codes, const int8_t* packed, int64_t groups, int32_t* tile) {
  __m256i sums[8];
  unroll<8>([&](auto i) INT8PASS_INLINE { sums[i] = _mm256_setzero_si256(); });
  const __m256i ones = _mm256_set1_epi16(1);
  for (int64_t g = 0; g < groups; ++g, codes += kGroupK, packed += kBlockN * kGroupK) {
    const __m128i wide = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes));
    const __m256i four = _mm256_broadcastd_epi32(_mm_packs_epi16(wide, wide));
    const __m256i magnitudes = _mm256_abs_epi8(four);
    unroll<8>([&](auto i) INT8PASS_INLINE {
      const __m256i weights = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(packed + i * 32));
      const __m256i pairs = _mm256_maddubs_epi16(magnitudes, _mm256_sign_epi8(weights, four));
      sums[i] = _mm256_add_epi32(sums[i], _mm256_madd_epi16(pairs, ones));
    });
  }
  unroll<8>([&](auto i) INT8PASS_INLINE { _mm256_store_si256(reinterpret_cast<__m256i*>(tile + i * 8), sums[i]); });
}

template <int kRows>
void row_group(const int16_t* codes, const int16_t* panel, int64_t groups, int32_t* tile, bool add) {
  for (int64_t eighth = 0; eighth < 8; ++eighth)
    register_tile<kRows>(codes, panel + eighth * groups * 32, groups, tile + eighth * 8, add);
}

// codes: row groups as `arrange` leaves them, for all K; packed: one block [K/4][64][4]; tile: int32 [rows][64]
inline void multiply_tile(const Code* codes, int64_t rows, const int8_t* packed, int64_t padded, int32_t* tile,
                          Scratch& scratch) {
  const int64_t groups = padded / kGroupK;
  if (rows == 1) return one_row(codes, packed, groups, tile);
  for (int64_t first = 0; first < groups; first += kPanelGroups) {
    const int64_t count = std::min(kPanelGroups, groups - first);
    widen(packed + first * kBlockN * kGroupK, count, scratch.panel);
    for (int64_t m = 0; m < rows; m += kGroupRows) {
      const int64_t together = std::min<int64_t>(kGroupRows, rows - m);
      const Code* start = codes + m * padded + first * together * kGroupK;
      int32_t* out = tile + m * kBlockN;
      switch (together) {
        case 1: row_group<1>(start, scratch.panel, count, out, first > 0); break;
        case 2: row_group<2>(start, scratch.panel, count, out, first > 0); break;
        case 3: row_group<3>(start, scratch.panel, count, out, first > 0); break;
        case 4: row_group<4>(start, scratch.panel, count, out, first > 0); break;
        case 5: row_group<5>(start, scratch.panel, count, out, first > 0); break;
        default: row_group<6>(start, scratch.panel, count, out, first > 0);
      }
    }
  }
}

}  // namespace int8pass::native
