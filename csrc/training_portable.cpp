// What training needs besides products, in plain C++.
#include <algorithm>
#include <cstring>

#include "training.h"
#include "training.inc"

namespace qk {

const TrainingKernels kTrainingPortable{drop, unpack};

}  // namespace qk
