// Causal grouped-query attention without gradients: the queries of a call are the last tokens of each row, whose keys
// and values are read where they lie.
//
// A key-value head meets all queries of the heads that share it. Few queries: the keys are cut into blocks, each task
// takes one with a softmax of its own, and the blocks are put together in their order. Many: a task takes a run of
// queries over all keys, block after block, with a softmax that is rescaled when a larger score comes (online softmax,
// Milakov and Gimelshein 2018; FlashAttention, Dao et al. 2022). The blocks are those of the key's own number and no
// row looks beyond its length, so that neither threads nor neighbours change a bit.
#include "few_rows.h"
#include "gemm.h"
#include "lanes.h"
#include "softmax.h"
#include "threads.h"

namespace seqloom {
namespace {

constexpr int64_t block_keys = 256;
constexpr int64_t many_rows = 192;   // rows (queries times heads) of a task, or one query of each head

template <class E>
struct Attention {
    const E *q, *k, *v;
    E* y;                    // [B, T, H, K], contiguous
    const int64_t* lengths;  // tokens of each row before this call
    int64_t rows, heads, groups, tokens, width;
    int64_t q_row, q_head, q_token;  // strides
    int64_t k_row, k_head, k_token;  // of keys and of values
    float scale;
    int32_t threads;

    int64_t shared() const { return heads / groups; }
    // The i-th of the queries from `token` on that share key-value head g: all tokens of a head, then the next head.
    const E* query(int64_t b, int64_t g, int64_t i, int64_t token, int64_t count) const {
        return q + b * q_row + (g * shared() + i / count) * q_head + (token + i % count) * q_token;
    }
    E* output(int64_t b, int64_t g, int64_t i, int64_t token, int64_t count) const {
        return y + ((b * tokens + token + i % count) * heads + g * shared() + i / count) * width;
    }
};

// exp(x - top) in place for the first `seen` of `count` numbers, 0 for the others; returns the sum.
float weights(float* x, int64_t seen, int64_t count, float top) {
    std::fill(x + seen, x + count, 0.0f);
    return exponentials(x, seen, top, [&](int64_t i, vf e, auto lanes) { store(x + i, e, lanes); });
}

// C vectors of columns of y [M, K] = p [M, count] v [count, K].
template <int M, int C, class E, class Lanes>
void weigh(const float* p, int64_t ldp, const E* v, int64_t ldv, int64_t count, float* y, int64_t ldy, Lanes lanes) {
    vf sums[M][C] = {};
    for (int64_t s = 0; s < count; ++s) {
        vf value[C];
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) value[c] = load(v + s * ldv + c * W, lanes);
#pragma GCC unroll 4
        for (int i = 0; i < M; ++i)
#pragma GCC unroll 4
            for (int c = 0; c < C; ++c) sums[i][c] = fma(p[i * ldp + s] - vf{}, value[c], sums[i][c]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < M; ++i)
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) store(y + i * ldy + c * W, sums[i][c], lanes);
}

template <int M, class E>
void weighted_rows(const float* p, int64_t ldp, const E* v, int64_t ldv, int64_t count, int64_t width, float* y,
                   int64_t ldy) {
    constexpr int C = M > 2 ? 2 : 4;
    int64_t at = 0;
    for (; at + C * W <= width; at += C * W) weigh<M, C>(p, ldp, v + at, ldv, count, y + at, ldy, Whole{});
    for (; at + W <= width; at += W) weigh<M, 1>(p, ldp, v + at, ldv, count, y + at, ldy, Whole{});
    if (at < width) weigh<M, 1>(p, ldp, v + at, ldv, count, y + at, ldy, Part{width - at});
}

// y [m, K] = p [m, count] v [count, K]
template <class E>
void weighted(int64_t m, const float* p, int64_t ldp, const E* v, int64_t ldv, int64_t count, int64_t width, float* y,
              int64_t ldy) {
    for (; m >= 4; m -= 4, p += 4 * ldp, y += 4 * ldy) weighted_rows<4>(p, ldp, v, ldv, count, width, y, ldy);
    if (m == 3) weighted_rows<3>(p, ldp, v, ldv, count, width, y, ldy);
    if (m == 2) weighted_rows<2>(p, ldp, v, ldv, count, width, y, ldy);
    if (m == 1) weighted_rows<1>(p, ldp, v, ldv, count, width, y, ldy);
}

// One block of keys: for every query its largest score, the sum of exponentials, and the weighted sum of values.
template <class E>
void block_of_few(const Attention<E>& a, int64_t b, int64_t g, int64_t first, int64_t count, float* partial) {
    using Keys = std::conditional_t<std::is_same_v<E, float>, Fp32, Bf16>;
    int64_t m = a.shared() * a.tokens, ldq = arranged_width<Keys>(a.width), ldp = a.width + 2;
    float* q = static_cast<float*>(scratch(m * ldq * sizeof(float), 5));
    float* scores = static_cast<float*>(scratch(m * count * sizeof(float), 6));
    for (int64_t i = 0; i < m; ++i) arrange<Keys>(a.query(b, g, i, 0, a.tokens), a.width, q + i * ldq);
    for (int64_t i = 0; i < m * ldq; i += W) store(q + i, load(q + i) * a.scale);
    const E* k = a.k + b * a.k_row + g * a.k_head + first * a.k_token;
    const E* v = a.v + b * a.k_row + g * a.k_head + first * a.k_token;
    few_rows<Keys>(m, count, a.width, q, ldq, {k, a.k_token}, scores, count);
    for (int64_t i = 0; i < m; ++i) {
        int64_t seen = std::min(count, a.lengths[b] + i % a.tokens + 1 - first);
        float top = seen > 0 ? largest(scores + i * count, seen) : -INFINITY;
        partial[i * ldp + a.width] = top;
        partial[i * ldp + a.width + 1] = weights(scores + i * count, std::max<int64_t>(seen, 0), count, top);
    }
    weighted(m, scores, count, v, a.k_token, count, a.width, partial, ldp);
}

// One query's blocks, `stride` numbers apart, put together.
template <class E>
void join_blocks(const float* partial, int64_t blocks, int64_t stride, int64_t width, E* y) {
    float top = -INFINITY, total = 0;
    for (int64_t j = 0; j < blocks; ++j) top = std::max(top, partial[j * stride + width]);
    auto share = [&](int64_t j) { return exp(broadcast(partial[j * stride + width] - top))[0]; };
    for (int64_t j = 0; j < blocks; ++j) total += share(j) * partial[j * stride + width + 1];
    each_vector(width, [&](int64_t i, auto lanes) {
        vf result{};
        for (int64_t j = 0; j < blocks; ++j)
            result = fma(broadcast(share(j) / total), load(partial + j * stride + i, lanes), result);
        store(y + i, result, lanes);
    });
}

template <class E>
void attend_few(const Attention<E>& a) {
    int64_t m = a.shared() * a.tokens, stride = m * (a.width + 2);
    int64_t longest = *std::max_element(a.lengths, a.lengths + a.rows) + a.tokens;
    int64_t blocks = (longest + block_keys - 1) / block_keys;
    float* partial = static_cast<float*>(scratch(a.rows * a.groups * blocks * stride * sizeof(float), 4));
    parallel_for(a.rows * a.groups * blocks, a.threads, [&](int64_t task) {
        int64_t block = task % blocks, g = task / blocks % a.groups, b = task / blocks / a.groups;
        int64_t first = block * block_keys, count = std::min(block_keys, a.lengths[b] + a.tokens - first);
        if (count > 0) block_of_few(a, b, g, first, count, partial + task * stride);
    });
    for (int64_t b = 0; b < a.rows; ++b)
        for (int64_t g = 0; g < a.groups; ++g)
            for (int64_t i = 0; i < m; ++i) {
                int64_t own = (a.lengths[b] + i % a.tokens) / block_keys + 1;
                join_blocks(partial + (b * a.groups + g) * blocks * stride + i * (a.width + 2), own, stride, a.width,
                            a.output(b, g, i, 0, a.tokens));
            }
}

// Scales the sums of a query so far where a larger score than all before has come, and gives that factor.
float rescale(float top, float& largest_before, float* sums, int64_t width) {
    if (top == largest_before) return 1.0f;
    float kept = exp_below(broadcast(largest_before - top))[0];
    each_vector(width, [&](int64_t j, auto lanes) { store(sums + j, load(sums + j, lanes) * kept, lanes); });
    largest_before = top;
    return kept;
}

// `count` queries of each head from `token` on, over all the keys they see. Keys and values of a block are packed: the
// rows of a head lie a power of two apart, where too many of them fall on the same places of the first cache.
template <class E>
void run_of_many(const Attention<E>& a, int64_t b, int64_t g, int64_t token, int64_t count) {
    using namespace gemm_parts;
    int64_t m = a.shared() * count, width = a.width, end = a.lengths[b] + token + count;
    float* q = static_cast<float*>(scratch(m * width * sizeof(float), 4));
    float* sums = static_cast<float*>(scratch(m * width * sizeof(float), 5));
    float* scores = static_cast<float*>(scratch(m * block_keys * sizeof(float), 6));
    const int64_t room = up(block_keys, kColumns) * up(width, kColumns) + 8;
    float* packed = static_cast<float*>(scratch(room * sizeof(float), 8));
    float* tops = static_cast<float*>(scratch(2 * m * sizeof(float), 7));
    float* totals = tops + m;
    for (int64_t i = 0; i < m; ++i) {
        const E* from = a.query(b, g, i, token, count);
        each_vector(width, [&](int64_t j, auto lanes) { store(q + i * width + j, load(from + j, lanes) * a.scale, lanes); });
    }
    std::fill(sums, sums + m * width, 0.0f);
    std::fill(tops, tops + m, -INFINITY);
    std::fill(totals, totals + m, 0.0f);
    for (int64_t first = 0; first < end; first += block_keys) {
        int64_t keys = std::min(block_keys, end - first);
        const E* k = a.k + b * a.k_row + g * a.k_head + first * a.k_token;
        const E* v = a.v + b * a.k_row + g * a.k_head + first * a.k_token;
        pack<kColumns>(Strided<E>{k, a.k_token, 1}, keys, width, packed);
        block_product(m, keys, 0, width, Panels{q, width, width, 1}, {}, Panels{packed, width, 1, kColumns}, scores,
                      block_keys, false);
        for (int64_t i = 0; i < m; ++i) {
            float* row = scores + i * block_keys;
            int64_t seen = std::clamp<int64_t>(a.lengths[b] + token + i % count + 1 - first, 0, keys);
            float kept = rescale(std::max(tops[i], largest(row, seen)), tops[i], sums + i * width, width);
            totals[i] = totals[i] * kept + weights(row, seen, keys, tops[i]);
        }
        pack<kColumns>(Strided<E>{v, 1, a.k_token}, width, keys, packed);
        block_product(m, width, 0, keys, Panels{scores, block_keys, block_keys, 1}, {},
                      Panels{packed, keys, 1, kColumns}, sums, width, true);
    }
    for (int64_t i = 0; i < m; ++i) {
        E* to = a.output(b, g, i, token, count);
        each_vector(width, [&](int64_t j, auto lanes) {
            store(to + j, load(sums + i * width + j, lanes) / totals[i], lanes);
        });
    }
}

template <class E>
void attend_many(const Attention<E>& a) {
    int64_t count = std::max<int64_t>(many_rows / a.shared(), 1), runs = (a.tokens + count - 1) / count;
    parallel_for(a.rows * a.groups * runs, a.threads, [&](int64_t task) {
        int64_t run = runs - 1 - task / a.groups / a.rows;  // the longest first
        int64_t g = task % a.groups, b = task / a.groups % a.rows;
        run_of_many(a, b, g, run * count, std::min(count, a.tokens - run * count));
    });
}

}  // namespace
}  // namespace seqloom

#define SEQLOOM_ATTENTION(name, E)                                                                                     \
    extern "C" void seqloom_attention_##name(                                                                          \
        const void* q, const void* k, const void* v, void* y, const int64_t* lengths, int64_t rows, int64_t heads,     \
        int64_t groups, int64_t tokens, int64_t width, int64_t q_row, int64_t q_head, int64_t q_token, int64_t k_row,  \
        int64_t k_head, int64_t k_token, float scale, int32_t few, int32_t threads) {                                  \
        using namespace seqloom;                                                                                       \
        Attention<E> a{static_cast<const E*>(q), static_cast<const E*>(k), static_cast<const E*>(v),                   \
                       static_cast<E*>(y), lengths, rows, heads, groups, tokens, width, q_row, q_head, q_token, k_row, \
                       k_head, k_token, scale, threads};                                                               \
        few ? attend_few(a) : attend_many(a);                                                                          \
    }

SEQLOOM_ATTENTION(f32, float)
SEQLOOM_ATTENTION(bf16, seqloom::bf16)
