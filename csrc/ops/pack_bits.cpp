#include "schema.h"

// Conversion between 0/1 masks [N, D] and packed words [N, ceil(D / 64)].
PATHWAYS_SCHEMAS({
    "pack_bits(Tensor mask) -> Tensor",

    "unpack_bits(Tensor words, int size) -> Tensor",
});
