// A matrix of numbers as kernels of quantization see it, cut into tiles, and the largest magnitudes in it. NaN is none.
#pragma once

#include <algorithm>

#include "lanes.h"
#include "threads.h"

namespace seqloom {

constexpr int slot_strip = 4, slot_sums = 5;  // of each thread's scratch memory
constexpr int64_t group = 16;                 // points of the transform, and numbers that share a counter of Philox

inline int64_t ceiling(int64_t n, int64_t part) { return (n + part - 1) / part; }
inline int64_t padded(int64_t n) { return ceiling(n, W) * W; }

template <class T>
struct Numbers {
    T* data;
    int64_t rows, columns, apart;

    T* at(int64_t row, int64_t column) const { return data + row * apart + column; }
};

// The largest magnitude of n numbers; NaN is none.
template <class T>
[[gnu::always_inline]] inline vf magnitudes(int64_t n, const T* x, vf most) {
    vf others[3] = {};
    int64_t i = 0;
    for (; i + 4 * W <= n; i += 4 * W) {
        most = max(abs(load(x + i)), most);
        for (int part = 0; part < 3; ++part) others[part] = max(abs(load(x + i + (part + 1) * W)), others[part]);
    }
    for (; i + W <= n; i += W) most = max(abs(load(x + i)), most);
    if (i < n) most = max(abs(load(x + i, n - i)), most);
    return max(max(most, others[0]), max(others[1], others[2]));
}

// body(row, column, rows, columns) for the tiles of a matrix
template <class F>
void each_tile(int64_t rows, int64_t columns, int64_t height, int64_t width, int threads, F&& body) {
    const int64_t across = ceiling(columns, width);
    parallel_for(ceiling(rows, height) * across, threads, [&](int64_t task) {
        const int64_t row = task / across * height, column = task % across * width;
        body(row, column, std::min(height, rows - row), std::min(width, columns - column));
    });
}

// The largest of what body(row, rows) gives for every `share` of the rows.
template <class F>
float largest_of_rows(int64_t rows, int64_t share, int threads, F&& body) {
    const int64_t tasks = ceiling(rows, share);
    vf* found = static_cast<vf*>(scratch(tasks * sizeof(vf), slot_sums));
    parallel_for(tasks, threads, [&](int64_t task) {
        const int64_t row = task * share;
        found[task] = body(row, std::min(share, rows - row));
    });
    vf most = {};
    for (int64_t task = 0; task < tasks; ++task) most = max(found[task], most);
    return max(most);
}

}  // namespace seqloom
