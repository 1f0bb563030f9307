// Rows in the order of their experts: assignments sorted by counting, cut into blocks, gathered and summed by token.
//
// How rows are cut depends on their numbers alone, never on threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "simd.h"
#include "threads.h"

namespace seqloom {

// S tokens with K experts each out of E, from width I to F and back.
struct Sizes {
    int64_t S, K, E, I, F;
    int64_t rows() const { return S * K; }
};

// Assignments in the order of their experts: those of expert e stand at starts[e] .. starts[e + 1] of `order`, and
// assignment a at places[a].
struct Sorted {
    const int32_t *order, *places, *starts;
};

// The parts of `work` [2 S K + E + 1] after counting. The last number is then S K, or -1 if a choice is no expert and
// nothing else was done.
inline bool sort(const int64_t* chosen, const Sizes& sizes, int32_t* work, Sorted* sorted) {
    const int64_t count = sizes.rows();
    int32_t *order = work, *places = work + count, *starts = work + 2 * count;
    std::fill_n(starts, sizes.E + 1, 0);
    for (int64_t a = 0; a < count; ++a) {
        if (chosen[a] < 0 || chosen[a] >= sizes.E) {
            starts[sizes.E] = -1;
            return false;
        }
        ++starts[chosen[a] + 1];
    }
    for (int64_t e = 0; e < sizes.E; ++e) starts[e + 1] += starts[e];
    std::vector<int32_t> next(starts, starts + sizes.E);
    for (int64_t a = 0; a < count; ++a) {
        places[a] = next[chosen[a]]++;
        order[places[a]] = int32_t(a);
    }
    *sorted = {order, places, starts};
    return true;
}

// Rows first .. last of one expert, in that order.
struct Rows {
    int64_t expert, first, last;
    int64_t count() const { return last - first; }
};

// Cut into the fewest parts of at most so many rows, of about equal length.
inline std::vector<Rows> cut(const Rows& rows, int64_t most) {
    std::vector<Rows> parts;
    const int64_t count = (rows.count() + most - 1) / most;
    for (int64_t i = 0; i < count; ++i)
        parts.push_back({rows.expert, rows.first + rows.count() * i / count,
                         rows.first + rows.count() * (i + 1) / count});
    return parts;
}

inline std::vector<Rows> blocks_of_all(const Sorted& sorted, int64_t experts, int64_t most) {
    std::vector<Rows> blocks;
    for (int64_t e = 0; e < experts; ++e)
        for (const Rows& block : cut({e, sorted.starts[e], sorted.starts[e + 1]}, most)) blocks.push_back(block);
    return blocks;
}

// The tokens' rows of x, one for each assignment.
template <class T>
void gather(const T* x, const Sorted& sorted, const Rows& rows, const Sizes& sizes, T* to) {
    for (int64_t r = rows.first; r < rows.last; ++r, to += sizes.I)
        std::memcpy(to, x + sorted.order[r] / sizes.K * sizes.I, size_t(sizes.I) * sizeof(T));
}

// y_s = sum over k of weights_sk rows[places_sk], in the order of k; without weights, each counts 1.
template <class T>
void sum_by_token(const float* rows, const float* weights, const Sorted& sorted, const Sizes& sizes, T* y,
                  int threads) {
    constexpr int64_t block = 64;
    parallel_for((sizes.S + block - 1) / block, threads, [=](int64_t task) {
        for (int64_t s = task * block; s < std::min(sizes.S, (task + 1) * block); ++s) {
            const int32_t* places = sorted.places + s * sizes.K;
            auto total = [&](auto read) {
                vf sum{};
                for (int64_t k = 0; k < sizes.K; ++k) {
                    const float weight = weights ? weights[s * sizes.K + k] : 1.0f;
                    sum = fma(broadcast(weight), read(rows + places[k] * sizes.I), sum);
                }
                return sum;
            };
            int64_t i = 0;
            for (; i + W <= sizes.I; i += W)
                store(y + s * sizes.I + i, total([i](const float* row) { return load(row + i); }));
            if (const int64_t n = sizes.I - i)
                store(y + s * sizes.I + i, total([i, n](const float* row) { return load(row + i, n); }), n);
        }
    });
}

}  // namespace seqloom
