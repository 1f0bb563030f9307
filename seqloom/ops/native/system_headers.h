// The system headers that most sources include, which GCC reads once for all of them (compiler.py, `precompile`). No
// source may count on them being here.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#if defined(__AVX__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif
