#include "schema.h"

// Distance-aware quantization to one bit.
PATHWAYS_SCHEMAS({
    "binarize(Tensor importance, float sigma=1.0, float gamma=2.0) -> Tensor",

    "_binarize_backward(Tensor grad, Tensor importance, float sigma=1.0, "
    "float gamma=2.0) -> Tensor",
});
