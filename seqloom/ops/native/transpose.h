// A block of numbers turned, eight by eight.
#pragma once

#include <cstring>

#include "gemm.h"

namespace seqloom {

// to[j, i] = from[i, j]; rows of `from` and of `to` lie `from_apart` and `to_apart` numbers apart.
inline void transpose(int64_t rows, int64_t columns, const float* from, int64_t from_apart, float* to,
                      int64_t to_apart) {
    using namespace gemm_parts;
    auto one_by_one = [&](int64_t i0, int64_t i1, int64_t j0) {
        for (int64_t j = j0; j < columns; ++j)
            for (int64_t i = i0; i < i1; ++i) to[j * to_apart + i] = from[i * from_apart + j];
    };
    int64_t i = 0;
    for (; i + 8 <= rows; i += 8) {
        for (int64_t j = 0; j + 8 <= columns; j += 8) {
            eight block[8];
            for (int q = 0; q < 8; ++q) block[q] = load_eight(from + (i + q) * from_apart + j);
            transpose_eight(block);
            for (int q = 0; q < 8; ++q) std::memcpy(to + (j + q) * to_apart + i, &block[q], sizeof(eight));
        }
        one_by_one(i, i + 8, columns / 8 * 8);
    }
    one_by_one(i, rows, 0);
}

}  // namespace seqloom
