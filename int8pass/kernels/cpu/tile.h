// The int32 tile product of this processor, and the order in which it reads codes.
#pragma once

#include <vector>

#include "layout.h"

#if defined(INT8PASS_PORTABLE)
#include "tile_portable.h"
#elif defined(__AVX2__)
#include "tile_avx2.h"
#elif defined(__ARM_FEATURE_DOTPROD)
#include "tile_neon.h"
#else
#include "tile_portable.h"
#endif

namespace int8pass {

// Codes uint8 [rows][4 * groups] with zero point 128 -> a row group whose x is `out`; see native::arrange
inline native::RowGroup arrange(const uint8_t* codes, int64_t rows, int64_t groups, bool alone, Four* out) {
  std::vector<Four> signed_codes(rows * groups);
  auto* bytes = reinterpret_cast<uint8_t*>(signed_codes.data());
  for (int64_t i = 0; i < rows * groups * kGroupK; ++i) bytes[i] = codes[i] ^ 128;
  return native::arrange(signed_codes.data(), rows, groups, alone, out);
}

}  // namespace int8pass
