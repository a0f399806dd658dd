#include "schema.h"

// Means and maxima of the cells of a grid over every map, means first.
PATHWAYS_SCHEMAS({
    "adaptive_avg_max_pool2d(Tensor x, int height, int width) -> Tensor",
});
