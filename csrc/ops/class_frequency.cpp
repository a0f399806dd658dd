#include "schema.h"

// How often each neuron is in the pathways of each class.
PATHWAYS_SCHEMAS({
    "class_frequency(Tensor words, Tensor labels, int num_classes, int size) "
    "-> Tensor",
});
