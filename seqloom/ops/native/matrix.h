// A matrix of weights as it is stored, whatever the format; `Matrix` in matrix.py has the same fields.
#pragma once

#include <cstdint>

namespace seqloom {

enum Kind : int32_t { fp32_kind, bf16_kind, int8_kind, fp8_kind, nvfp4_kind };

struct Matrix {
    const void* data;    // [n, k] numbers or codes
    const void* scales;  // of the kinds that have some: one for a stretch of a row
    float multiplier;    // of all numbers
    int32_t kind;
};

}  // namespace seqloom
