// Multiplies random and extreme codes tile by tile and compares every sum with a plain loop. Prints the tile's name.
#include <cstdio>
#include <random>
#include <vector>

#include "tile.h"

using namespace int8pass;

enum Kind { kUniform, kExtreme, kBell };

static uint8_t code(Kind kind, std::mt19937& random) {
  if (kind == kUniform) return 1 + random() % 255;
  if (kind == kExtreme) return random() & 1 ? 255 : 1;
  std::normal_distribution<float> bell(128, 40);  // few pairs of codes are large
  return std::min(255.0f, std::max(1.0f, bell(random)));
}

static bool exact(int64_t rows, int64_t features, Kind kind, std::mt19937& random) {
  std::vector<uint8_t> codes(rows * features);
  std::vector<int8_t> packed(features * kBlockN);
  for (auto& one : codes) one = code(kind, random);
  for (auto& weight : packed) weight = static_cast<int>(code(kind == kBell ? kExtreme : kind, random)) - 128;
  const int64_t groups = features / kGroupK, together = std::min<int64_t>(native::kGroupRows, rows);
  std::vector<Four> arranged(rows * groups);
  std::vector<native::RowGroup> row_groups;
  for (int64_t m = 0; m < rows; m += together)
    row_groups.push_back(native::arrange(codes.data() + m * features, std::min(together, rows - m), groups, rows == 1,
                                 arranged.data() + m * groups));
  alignas(64) static int32_t tile[96 * kBlockN];
  alignas(64) static native::Scratch scratch;
  native::multiply_tile(row_groups.data(), row_groups.size(), packed.data(), groups, tile, scratch);
  for (int64_t m = 0; m < rows; ++m)
    for (int64_t n = 0; n < kBlockN; ++n) {
      int64_t sum = 0;
      for (int64_t k = 0; k < features; ++k)
        sum += (static_cast<int>(codes[m * features + k]) - (native::kUnsignedCodes ? 0 : 128)) *
               static_cast<int>(packed[(k / kGroupK * kBlockN + n) * kGroupK + k % kGroupK]);
      if (sum != tile[m * kBlockN + n]) return false;
    }
  return true;
}

int main() {
  std::mt19937 random(0);
  for (int64_t rows = 1; rows <= 20; ++rows)
    for (const int64_t features : {4, 64, 252, 256, 260, 1032})
      for (const Kind kind : {kUniform, kExtreme, kBell})
        if (!exact(rows, features, kind, random)) {
          std::printf("%s: wrong at %d rows, %d features\n", native::kName, int(rows), int(features));
          return 1;
        }
  std::puts(native::kName);
}
