#include "schema.h"

// Sums and counts of the IoU of pairs of pathways by the classes of the two.
PATHWAYS_SCHEMAS({
    "class_overlap(Tensor words, Tensor labels, int num_classes) "
    "-> (Tensor sums, Tensor pairs)",
});
