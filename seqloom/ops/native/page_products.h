// The products of attention with pages of keys and values: a few queries with a page as it is stored, or many with what
// has been widened. Either way a number is one chain of fused multiply-adds in the same order.
#pragma once

#include "fp8.h"
#include "gemm.h"

namespace seqloom {
namespace page_products {

constexpr int64_t block_keys = 256;                // with a softmax of their own; whole pages
constexpr int64_t score_stride = block_keys + 16;  // between rows of scores: an odd number of cache lines

// How many times too small `read` gives stored numbers.
template <class S>
constexpr float unit = 1;
template <>
constexpr float unit<fp8> = fp8_unit;

template <int V, class S, class Lanes>
[[gnu::always_inline]] inline void read(const S* p, vf (&to)[V], Lanes lanes) {
    if constexpr (std::is_same_v<S, fp8> && std::is_same_v<Lanes, Whole> && V % 2 == 0) {
#pragma GCC unroll 4
        for (int v = 0; v < V; v += 2) load_pair(p + v * W, to[v], to[v + 1]);
    } else {
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) {
            to[v] = load(p + v * W, lanes);
            if (unit<S> != 1) to[v] *= 1 / unit<S>;
        }
    }
}

template <class S>
void widen(const S* from, int64_t count, float* to) {
    int64_t at = 0;
    for (; at + 4 * W <= count; at += 4 * W) {
        vf four[4];
        read(from + at, four, Whole{});
        for (int v = 0; v < 4; ++v) store(to + at + v * W, four[v]);
    }
    each_vector(count - at, [&](int64_t i, auto lanes) {
        vf one[1];
        read(from + at + i, one, lanes);
        store(to + at + i, one[0], lanes);
    });
}

// Asks for memory that is needed soon, `bytes` at a step.
struct Ahead {
    const char* at;

    template <int bytes>
    [[gnu::always_inline]] void step() {
#pragma GCC unroll 8
        for (int i = 0; i < bytes; i += 64) __builtin_prefetch(at + i);
        at += bytes;
    }
};

constexpr int vectors_of(int rows) { return W == 8 ? (rows == 1 ? 8 : rows == 2 ? 4 : 2) : 4; }

// M queries against V vectors of keys.
template <int M, int V, class S>
void score(const float* q, int64_t ldq, const S* keys, int64_t page_tokens, int64_t width, float* to, Ahead& ahead) {
    vf sums[M][V] = {};
    for (int64_t k = 0; k < width; ++k) {
        vf key[V];
        read(keys + k * page_tokens, key, Whole{});
        ahead.step<V * W * sizeof(S)>();
#pragma GCC unroll 4
        for (int i = 0; i < M; ++i) {
            const vf query = q[i * ldq + k] - vf{};
#pragma GCC unroll 8
            for (int v = 0; v < V; ++v) sums[i][v] = fma(query, key[v], sums[i][v]);
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < M; ++i)
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) store(to + i * score_stride + v * W, sums[i][v]);
}

// The first `count` keys of a page, in whole vectors.
template <int M, class S>
void score_page(const float* q, int64_t ldq, const S* keys, int64_t page_tokens, int64_t width, int64_t count,
                float* to, const S* next) {
    constexpr int V = vectors_of(M);
    Ahead ahead{reinterpret_cast<const char*>(next)};
    int64_t at = 0;
    for (; at + (V - 1) * W < count && at + V * W <= page_tokens; at += V * W)
        score<M, V>(q, ldq, keys + at, page_tokens, width, to + at, ahead);
    for (; at < count; at += W) score<M, 1>(q, ldq, keys + at, page_tokens, width, to + at, ahead);
}

// C vectors of columns of y [M, K] += p [M, count] v [count, K], from zero where `first`.
template <int M, int C, class S, class Lanes>
void weigh(const float* p, const S* v, int64_t width, int64_t count, bool first, float* y, int64_t ldy, Lanes lanes,
           Ahead& ahead) {
    vf sums[M][C];
#pragma GCC unroll 4
    for (int i = 0; i < M; ++i)
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c) sums[i][c] = first ? vf{} : load(y + i * ldy + c * W, lanes);
    for (int64_t s = 0; s < count; ++s) {
        vf value[C];
        read(v + s * width, value, lanes);
        ahead.step<C * W * sizeof(S)>();
#pragma GCC unroll 4
        for (int i = 0; i < M; ++i) {
            const vf weight = p[i * score_stride + s] - vf{};
#pragma GCC unroll 8
            for (int c = 0; c < C; ++c) sums[i][c] = fma(weight, value[c], sums[i][c]);
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < M; ++i)
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c) store(y + i * ldy + c * W, sums[i][c], lanes);
}

template <int M, class S>
void weigh_page(const float* p, const S* v, int64_t width, int64_t count, bool first, float* y, int64_t ldy,
                const S* next) {
    constexpr int C = vectors_of(M);
    Ahead ahead{reinterpret_cast<const char*>(next)};
    int64_t at = 0;
    for (; at + C * W <= width; at += C * W) weigh<M, C>(p, v + at, width, count, first, y + at, ldy, Whole{}, ahead);
    for (; at + W <= width; at += W) weigh<M, 1>(p, v + at, width, count, first, y + at, ldy, Whole{}, ahead);
    if (at < width) weigh<M, 1>(p, v + at, width, count, first, y + at, ldy, Part{width - at}, ahead);
}

// Calls product(rows, i) for up to four rows at a time, their number known to the compiler.
template <class F>
void by_four(int64_t m, F&& product) {
    int64_t i = 0;
    for (; i + 4 <= m; i += 4) product(std::integral_constant<int, 4>{}, i);
    if (m - i == 3) product(std::integral_constant<int, 3>{}, i);
    if (m - i == 2) product(std::integral_constant<int, 2>{}, i);
    if (m - i == 1) product(std::integral_constant<int, 1>{}, i);
}

// c [m, n] = a [m, steps] b [steps, n], every number one chain from zero. Rows of b may be read to the end of a vector.
inline void product(int64_t m, int64_t n, int64_t steps, const float* a, int64_t lda, const float* b, int64_t ldb, float* c,
             int64_t ldc) {
    using namespace gemm_parts;
    for (int64_t j = 0; j < n; j += kColumns)
        for (int64_t i = 0; i < m; i += kRows)
            tile_of(int(std::min<int64_t>(kRows, m - i)), int(std::min<int64_t>(kColumns, n - j)), steps, a + i * lda,
                    lda, 1, b + j, ldb, c + i * ldc + j, ldc, false);
}

}  // namespace page_products
}  // namespace seqloom
