// The decode step for any CPU.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <vector>

#include "pool.h"
#include "step.h"

#include "vector_portable.h"
#include "step.inc"

void qk::decode_portable(const Step &step) { decode(step); }
