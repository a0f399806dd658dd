#include "schema.h"

// Overlap of every row of one set of packed pathways with every row of another.
PATHWAYS_SCHEMAS({
    "pairwise_intersection(Tensor a, Tensor b) -> Tensor",

    "pairwise_iou(Tensor a, Tensor b) -> Tensor",
});
