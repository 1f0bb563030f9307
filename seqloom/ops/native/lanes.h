// A row of n numbers as vectors: all whole ones, then what is left.
//
//     each_vector(n, [&](int64_t i, auto lanes) { store(y + i, load(x + i, lanes) * 2.0f, lanes); });
//     float total = sum_of(n, [&](int64_t i, auto lanes) { return load(x + i, lanes); });
//
// The body is compiled twice: once for whole vectors, once for the rest, whose missing lanes read as zero.
#pragma once

#include "simd.h"

namespace seqloom {

struct Whole {};
struct Part {
    int64_t count;
};

template <class T>
[[gnu::always_inline]] inline vf load(const T* p, Whole) { return load(p); }

template <class T>
[[gnu::always_inline]] inline vf load(const T* p, Part part) { return load(p, part.count); }

template <class T>
[[gnu::always_inline]] inline void store(T* p, vf x, Whole) { store(p, x); }

template <class T>
[[gnu::always_inline]] inline void store(T* p, vf x, Part part) { store(p, x, part.count); }

template <class F>
[[gnu::always_inline]] inline void each_vector(int64_t n, F&& body) {
    int64_t i = 0;
    for (; i + W <= n; i += W) body(i, Whole{});
    if (i < n) body(i, Part{n - i});
}

// to [n] = from [n], widened or rounded.
template <class S, class T>
void convert(const S* from, int64_t n, T* to) {
    each_vector(n, [&](int64_t i, auto lanes) { store(to + i, load(from + i, lanes), lanes); });
}

// Four sums in turn, since one would wait for itself.
template <class F>
[[gnu::always_inline]] inline float sum_of(int64_t n, F&& term) {
    vf sums[4] = {};
    int64_t i = 0;
    for (; i + 4 * W <= n; i += 4 * W)
        for (int part = 0; part < 4; ++part) sums[part] += term(i + part * W, Whole{});
    for (int part = 0; i + W <= n; i += W, ++part) sums[part] += term(i, Whole{});
    if (i < n) sums[3] += term(i, Part{n - i});
    return sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

}  // namespace seqloom
