#pragma once

// Comparing rows of packed words, tile by tile.

#include <cstdint>

#include "bit_tile.h"
#include "variant.h"

namespace pathways {

struct BitTileLoops {
  // Bits of each row.
  void (*sizes)(const BitMatrix& matrix, RowRange rows, int32_t* sizes);

  // In how many bits every row of a differs from every row of b. With `upper`,
  // where both are the same rows: at least for pairs with the row of a not
  // behind that of b.
  void (*differences)(const BitMatrix& a, RowRange a_rows, const BitMatrix& b,
                      RowRange b_rows, bool upper, TileMemory& memory);

  // From differences of one row and `count` others, and their sizes, to the
  // sizes of the intersections and to the IoU as float. The result may replace
  // the differences.
  void (*intersections)(const uint32_t* differences, int32_t size,
                        const int32_t* sizes, int64_t count, int32_t* result);
  void (*ious)(const uint32_t* differences, int32_t size, const int32_t* sizes,
               int64_t count, float* result);

  // The sum of the IoU, each rounded to double, of `rows` rows with `columns`
  // others; with `upper`, of those above the diagonal. The order of the sum
  // depends on nothing else.
  double (*iou_sum)(const uint32_t* differences, int64_t stride,
                    const int32_t* row_sizes, int64_t rows,
                    const int32_t* column_sizes, int64_t columns, bool upper);

  // Rows to columns.
  void (*transpose)(const uint32_t* from, int64_t from_stride, int64_t rows,
                    int64_t columns, uint32_t* to, int64_t to_stride);
};

PATHWAYS_VARIANT_TABLE(BitTileLoops, bit_tile_loops);

}  // namespace pathways
