// The int32 tile product of this processor, and the order in which it reads codes.
#pragma once

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

// codes uint8 [rows][padded] with zero point 128 -> signed row groups [padded/4][rows of the group][4]
inline void arrange(const uint8_t* codes, int64_t rows, int64_t padded, native::Code* out) {
  for (int64_t m = 0; m < rows; ++m)
    for (int64_t k = 0; k < padded; k += kGroupK)
      for (int64_t i = 0; i < kGroupK; ++i)
        out[k * rows + m * kGroupK + i] =
            static_cast<native::Code>(static_cast<int32_t>(codes[m * padded + k + i]) - 128);
}

}  // namespace int8pass
