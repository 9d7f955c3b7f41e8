// int32 tiles of signed codes times packed weights on AVX2, exact. Its 8-bit multiply, vpmaddubsw, adds two products of
// an unsigned and a signed byte at 16 bits, where they can saturate. Two ways around that:
//   shifted  (weight + 128) * code: a pair fits while |code + code| <= 128. What a pair has above that is multiplied
//            apart, as `excess`, one code a pair; in a row of activations few pairs have any.
//   signed   |code| * (weight with the sign of code): always fits, at one more instruction.
#pragma once

#include <immintrin.h>

#include <cstdlib>
#include <vector>

#include "layout.h"

namespace int8pass::native {

constexpr const char* kName = "AVX2";
constexpr bool kUnsignedCodes = false;
constexpr bool kBeatsBrgemm = false;
constexpr int kGroupRows = 5;         // rows of a register tile: 5 x 16 outputs in 10 of 16 registers
constexpr int64_t kPanelGroups = 64;  // feature groups of a block that are multiplied together: 16 KiB stay in L1
constexpr int64_t kBytesAhead = 8192;  // how far ahead one row's weights are prefetched
constexpr int32_t kLargestPair = 128;

struct Excess {
  int64_t group;
  Four magnitudes;
  int16_t signs[2];  // of each pair
};

// Rows that share a register tile
struct RowGroup {
  int64_t rows;
  const Four* x;                   // [K/4][rows]
  bool shifted;                    // else signed
  int32_t start[kGroupRows] = {};  // what sums start from: -128 * the sum of the row's codes where weights are shifted
  std::vector<Excess> excess[kGroupRows];
};

struct Scratch {
  alignas(64) int8_t panel[kPanelGroups * kGroupK * kBlockN];
};

INT8PASS_INLINE inline __m256i load(const void* place) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(place));
}

// 32 bits of codes or of signs in every place
template <typename T>
INT8PASS_INLINE inline __m256i broadcast(const T& bits) {
  static_assert(sizeof bits == 4);
  __m256i result;
  asm volatile("vpbroadcastd %1, %0" : "=x"(result) : "m"(bits));
  return result;
}

// Spelled out, since the compiler would keep sums in memory and copy registers
template <bool kShifted>
INT8PASS_INLINE inline void multiply_add(__m256i& sum, __m256i weights, __m256i codes, __m256i magnitudes,
                                         __m256i ones) {
  __m256i product;
  if constexpr (kShifted)
    asm volatile("vpmaddubsw %3, %2, %1\n\tvpmaddwd %4, %1, %1\n\tvpaddd %1, %0, %0"
                 : "+x"(sum), "=&x"(product)
                 : "x"(weights), "x"(codes), "x"(ones));
  else
    asm volatile("vpsignb %3, %2, %1\n\tvpmaddubsw %1, %4, %1\n\tvpmaddwd %5, %1, %1\n\tvpaddd %1, %0, %0"
                 : "+x"(sum), "=&x"(product)
                 : "x"(weights), "x"(codes), "x"(magnitudes), "x"(ones));
}

INT8PASS_INLINE inline __m256i ones_in_register() {
  __m256i ones = _mm256_set1_epi16(1);
  asm("" : "+x"(ones));
  return ones;
}

// kRows rows times 16 outputs: x [groups][kRows], panel [groups][16][4], tile [kRows][64]
template <int kRows, bool kShifted>
__attribute__((noinline)) void register_tile(const Four* x, const int8_t* panel, int64_t groups, const int32_t* start,
                                             int32_t* tile, bool add) {
  __m256i sums[kRows][2];
  const __m256i ones = ones_in_register();
  unroll<kRows>([&](auto r) INT8PASS_INLINE { sums[r][0] = sums[r][1] = _mm256_setzero_si256(); });
  for (int64_t g = 0; g < groups; ++g, x += kRows, panel += 64) {
    const __m256i low = load(panel), high = load(panel + 32);
    unroll<kRows>([&](auto r) INT8PASS_INLINE {
      const __m256i codes = broadcast(x[r]), magnitudes = kShifted ? codes : _mm256_abs_epi8(codes);
      multiply_add<kShifted>(sums[r][0], low, codes, magnitudes, ones);
      multiply_add<kShifted>(sums[r][1], high, codes, magnitudes, ones);
    });
  }
  unroll<kRows>([&](auto r) INT8PASS_INLINE {
    unroll<2>([&](auto i) INT8PASS_INLINE {
      auto* place = reinterpret_cast<__m256i*>(tile + r * kBlockN + i * 8);
      const __m256i before = add ? _mm256_load_si256(place) : _mm256_set1_epi32(start[r]);
      _mm256_store_si256(place, _mm256_add_epi32(sums[r][i], before));
    });
  });
}

// One row times 64 outputs, straight from packed weights. step(term, weights, sums) adds 8 outputs' products of a term
template <typename Step>
INT8PASS_INLINE inline void add_to_row(int64_t terms, int32_t* tile, Step&& step) {
  __m256i sums[8];
  unroll<8>([&](auto i) INT8PASS_INLINE { sums[i] = load(tile + i * 8); });
  for (int64_t term = 0; term < terms; ++term) step(term, sums);
  unroll<8>([&](auto i) INT8PASS_INLINE { _mm256_store_si256(reinterpret_cast<__m256i*>(tile + i * 8), sums[i]); });
}

// A row that shares the weights with no other: signed, since it waits for memory, not for instructions
inline void multiply_one_row(const RowGroup& row, const int8_t* packed, int64_t groups, int32_t* tile) {
  const __m256i ones = ones_in_register();
  std::memset(tile, 0, kBlockN * sizeof *tile);
  add_to_row(groups, tile, [&](int64_t group, __m256i* sums) INT8PASS_INLINE {
    const int8_t* weights = packed + group * kBlockN * kGroupK;
    const __m256i codes = broadcast(row.x[group]), magnitudes = _mm256_abs_epi8(codes);
    unroll<4>([&](auto i) INT8PASS_INLINE { _mm_prefetch(weights + kBytesAhead + i * 64, _MM_HINT_T0); });
    unroll<8>([&](auto i) INT8PASS_INLINE {
      multiply_add<false>(sums[i], load(weights + i * 32), codes, magnitudes, ones);
    });
  });
}

inline void add_excess(const std::vector<Excess>& excess, const int8_t* packed, int32_t* tile) {
  add_to_row(excess.size(), tile, [&](int64_t term, __m256i* sums) INT8PASS_INLINE {
    const int8_t* weights = packed + excess[term].group * kBlockN * kGroupK;
    const __m256i magnitudes = broadcast(excess[term].magnitudes), signs = broadcast(excess[term].signs);
    unroll<8>([&](auto i) INT8PASS_INLINE {
      const __m256i products = _mm256_maddubs_epi16(magnitudes, load(weights + i * 32));
      sums[i] = _mm256_add_epi32(sums[i], _mm256_madd_epi16(products, signs));
    });
  });
}

// packed [groups][64][4] -> panel [4][groups][16][4], so that a register tile reads it from end to end
inline void load_panel(const int8_t* packed, int64_t groups, bool shifted, int8_t* panel) {
  const __m256i flip = _mm256_set1_epi8(shifted ? -128 : 0);
  for (int64_t g = 0; g < groups; ++g)
    unroll<8>([&](auto i) INT8PASS_INLINE {
      auto* to = reinterpret_cast<__m256i*>(panel + (i / 2 * groups + g) * 64 + i % 2 * 32);
      _mm256_store_si256(to, _mm256_xor_si256(load(packed + g * kBlockN * kGroupK + i * 32), flip));
    });
}

// Weights that will be needed next, brought nearer while others are multiplied: `lines` of 64 bytes at each step
struct Ahead {
  const int8_t* next;
  int64_t lines;

  void step() {
    for (int64_t i = 0; i < lines; ++i, next += 64) _mm_prefetch(next, _MM_HINT_T1);
  }
};

template <int kRows>
void multiply_group(const RowGroup& group, int64_t first, const int8_t* panel, int64_t groups, int32_t* tile,
                    Ahead& ahead) {
  const auto multiply = group.shifted ? register_tile<kRows, true> : register_tile<kRows, false>;
  for (int64_t quarter = 0; quarter < 4; ++quarter) {
    ahead.step();
    multiply(group.x + first * kRows, panel + quarter * groups * 64, groups, group.start, tile + quarter * 16,
             first > 0);
  }
}

// Row groups of the same kind; packed: one block [K/4][64][4]; tile: int32 [rows][64]
inline void multiply_kind(const RowGroup* row_groups, int64_t count, bool shifted, const int8_t* packed, int64_t groups,
                          int32_t* tile, Scratch& scratch) {
  for (int64_t first = 0; first < groups; first += kPanelGroups) {
    const int64_t now = std::min(kPanelGroups, groups - first);
    load_panel(packed + first * kBlockN * kGroupK, now, shifted, scratch.panel);
    Ahead ahead{packed + (first + now) * kBlockN * kGroupK, ceil_div(kPanelGroups * kGroupK * kBlockN / 64, 4 * count)};
    int32_t* out = tile;
    for (int64_t i = 0; i < count; out += row_groups[i++].rows * kBlockN) {
      if (row_groups[i].shifted != shifted) continue;
      switch (row_groups[i].rows) {
        case 1: multiply_group<1>(row_groups[i], first, scratch.panel, now, out, ahead); break;
        case 2: multiply_group<2>(row_groups[i], first, scratch.panel, now, out, ahead); break;
        case 3: multiply_group<3>(row_groups[i], first, scratch.panel, now, out, ahead); break;
        case 4: multiply_group<4>(row_groups[i], first, scratch.panel, now, out, ahead); break;
        default: multiply_group<5>(row_groups[i], first, scratch.panel, now, out, ahead);
      }
    }
  }
}

inline void multiply_tile(const RowGroup* row_groups, int64_t count, const int8_t* packed, int64_t groups,
                          int32_t* tile, Scratch& scratch) {
  if (count == 1 && row_groups->rows == 1 && !row_groups->shifted)
    return multiply_one_row(*row_groups, packed, groups, tile);
  for (const bool shifted : {true, false})
    if (std::any_of(row_groups, row_groups + count, [&](const RowGroup& group) { return group.shifted == shifted; }))
      multiply_kind(row_groups, count, shifted, packed, groups, tile, scratch);
  for (int64_t i = 0; i < count; ++i)
    for (int64_t r = 0; r < row_groups[i].rows; ++r, tile += kBlockN)
      if (!row_groups[i].excess[r].empty()) add_excess(row_groups[i].excess[r], packed, tile);
}

// Moves what a pair has above kLargestPair from its second code to `excess`. Returns the sum of what was moved.
inline int32_t take_excess(Four& four, int64_t group, std::vector<Excess>& excess) {
  Excess above{group, {}, {1, 1}};
  int32_t moved = 0;
  for (int64_t pair = 0; pair < 2; ++pair) {
    int8_t& code = four.codes[pair * 2 + 1];
    const int32_t sum = four.codes[pair * 2] + code;
    if (std::abs(sum) <= kLargestPair) continue;
    const int32_t over = sum > 0 ? sum - kLargestPair : sum + kLargestPair;
    code = static_cast<int8_t>(code - over);
    above.magnitudes.codes[pair * 2 + 1] = static_cast<int8_t>(std::abs(over));
    above.signs[pair] = over > 0 ? 1 : -1;
    moved += over;
  }
  if (moved || above.signs[0] != above.signs[1]) excess.push_back(above);
  return moved;
}

// Whether any of 32 codes' pairs is too large; adds the pairs to `sum`
inline bool has_excess(__m256i codes, __m256i& sum) {
  const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), codes);
  sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  return !_mm256_testz_si256(_mm256_cmpgt_epi16(_mm256_abs_epi16(pairs), _mm256_set1_epi16(kLargestPair)),
                             _mm256_set1_epi16(-1));
}

// One row of signed codes [groups] into every `stride`-th of `out`, safe for shifted weights. Returns their sum.
inline int32_t arrange_shifted(const Four* codes, int64_t groups, int64_t stride, Four* out,
                               std::vector<Excess>& excess) {
  constexpr int64_t kTogether = 8;
  __m256i sum = _mm256_setzero_si256();
  int32_t total = 0;
  for (int64_t g = 0; g < groups; g += kTogether) {
    const int64_t now = std::min(kTogether, groups - g);
    Four eight[kTogether] = {};
    std::memcpy(eight, codes + g, now * sizeof(Four));
    const bool some = has_excess(load(eight), sum);
    for (int64_t i = 0; i < now; ++i) {
      if (some) total -= take_excess(eight[i], g + i, excess);
      out[(g + i) * stride] = eight[i];
    }
  }
  alignas(32) int32_t sums[8];
  _mm256_store_si256(reinterpret_cast<__m256i*>(sums), sum);
  for (const int32_t part : sums) total += part;
  return total;
}

// codes [rows][4 * groups] with zero point 128 -> a row group whose x is `out` [groups][rows]. alone: no other rows share
// the weights
inline RowGroup arrange(const uint8_t* codes, int64_t rows, int64_t groups, bool alone, Four* out) {
  const std::vector<Four> fours = signed_codes(codes, rows * groups);
  RowGroup group{rows, out, !alone};
  size_t excess = 0;
  for (int64_t r = 0; r < rows && group.shifted; ++r) {
    group.start[r] = -128 * arrange_shifted(fours.data() + r * groups, groups, rows, out + r, group.excess[r]);
    excess += group.excess[r].size();
    group.shifted = excess * 16 <= static_cast<size_t>(rows * groups);  // more would cost more than signed weights do
  }
  if (group.shifted) return group;
  for (int64_t r = 0; r < rows; ++r) {
    group.start[r] = 0;
    group.excess[r].clear();
    for (int64_t g = 0; g < groups; ++g) out[g * rows + r] = fours[r * groups + g];
  }
  return group;
}

}  // namespace int8pass::native
