// The forward call for any CPU.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <new>
#include <type_traits>
#include <vector>

#include "int8.h"
#include "matrix.h"
#include "pool.h"
#include "step.h"

#include "vector_portable.h"
#include "types.inc"
#include "product.inc"
#include "packed.inc"
#include "cache.inc"
#include "attention.inc"
#include "rounded.inc"
#include "step.inc"

void qk::forward_portable(const Forward &forward) { forward_all(forward); }
