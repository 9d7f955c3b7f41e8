// The layout of packed weights, and what all kernels are written with. No ATen here, so that tiles can be tested alone.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#define INT8PASS_INLINE __attribute__((always_inline))

namespace int8pass {

constexpr int64_t kBlockN = 64;  // outputs of one packed weight block
constexpr int64_t kGroupK = 4;   // features that stand together in a packed weight

// Codes of one row that are multiplied together
struct Four {
  int8_t codes[kGroupK];
};

// Codes with zero point 128, made signed
inline std::vector<Four> signed_codes(const uint8_t* codes, int64_t fours) {
  std::vector<Four> result(fours);
  auto* bytes = reinterpret_cast<uint8_t*>(result.data());
  for (int64_t i = 0; i < fours * kGroupK; ++i) bytes[i] = codes[i] ^ 128;
  return result;
}

inline int64_t ceil_div(int64_t count, int64_t size) { return (count + size - 1) / size; }

// Calls function(std::integral_constant<int, 0>), ..., with no loop left for the compiler to keep
template <int kCount, typename Function>
INT8PASS_INLINE inline void unroll(Function function) {
  [&]<int... kIndex>(std::integer_sequence<int, kIndex...>) INT8PASS_INLINE {
    (function(std::integral_constant<int, kIndex>{}), ...);
  }(std::make_integer_sequence<int, kCount>{});
}

}  // namespace int8pass
