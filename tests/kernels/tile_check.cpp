// Multiplies random and extreme codes tile by tile and compares every sum with a plain loop. Prints the tile's name.
#include <cstdio>
#include <random>
#include <vector>

#include "tile.h"

using namespace int8pass;

static bool exact(int64_t rows, int64_t features, bool extreme, std::mt19937& random) {
  std::vector<uint8_t> codes(rows * features);
  std::vector<int8_t> packed(features * kBlockN);
  for (auto& code : codes) code = extreme ? (random() & 1 ? 255 : 1) : 1 + random() % 255;
  for (auto& weight : packed) weight = extreme ? (random() & 1 ? 127 : -127) : static_cast<int>(random() % 255) - 127;
  std::vector<native::Code> arranged(rows * features);
  for (int64_t m = 0; m < rows; m += native::kGroupRows)
    arrange(codes.data() + m * features, std::min<int64_t>(native::kGroupRows, rows - m), features,
            arranged.data() + m * features);
  alignas(64) static int32_t tile[96 * kBlockN];
  alignas(64) static native::Scratch scratch;
  native::multiply_tile(arranged.data(), rows, packed.data(), features, tile, scratch);
  for (int64_t m = 0; m < rows; ++m)
    for (int64_t n = 0; n < kBlockN; ++n) {
      int64_t sum = 0;
      for (int64_t k = 0; k < features; ++k)
        sum += (static_cast<int>(codes[m * features + k]) - 128) *
               static_cast<int>(packed[(k / kGroupK * kBlockN + n) * kGroupK + k % kGroupK]);
      if (sum != tile[m * kBlockN + n]) return false;
    }
  return true;
}

int main() {
  std::mt19937 random(0);
  for (int64_t rows = 1; rows <= 14; ++rows)
    for (const int64_t features : {4, 64, 252, 256, 260, 1032})
      for (const bool extreme : {false, true})
        if (!exact(rows, features, extreme, random)) {
          std::printf("%s: wrong at %d rows, %d features\n", native::kName, int(rows), int(features));
          return 1;
        }
  std::puts(native::kName);
}
