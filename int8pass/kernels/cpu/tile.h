// The int32 tile product of this processor, and the order in which it reads codes.
#pragma once

#if defined(INT8PASS_PORTABLE)
#include "tile_portable.h"
#elif defined(__AVX512VNNI__)
#include "tile_vnni.h"
#elif defined(__AVX2__)
#include "tile_avx2.h"
#elif defined(__ARM_FEATURE_DOTPROD)
#include "tile_neon.h"
#else
#include "tile_portable.h"
#endif
