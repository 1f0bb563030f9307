// Causal grouped-query attention over keys and values in pages: the queries of a call are the last tokens of each row.
//
// Within a page keys lie turned, [K, tokens], so scores are chains of fused multiply-adds along K, side by side for as
// many keys as a vector holds; values lie as they come, [tokens, K], and are weighed the same way along the tokens.
// There is one arithmetic: the keys of a row are cut into blocks by their own number, every block has a softmax of its
// own, and blocks are put together in their order by the online rule (Milakov and Gimelshein 2018). How many queries a
// call has, where pages lie, and how work is cut only decide where operands are read from, never what is computed.
#include "page_products.h"
#include "softmax.h"
#include "threads.h"

namespace seqloom {
namespace {

using namespace page_products;

constexpr int64_t run_rows = 192;    // queries times heads of a task, or one query of each head
constexpr int64_t direct_rows = 16;  // so few read the pages as they are stored; more have them widened first
constexpr int slot_blocks = 4, slot_run = 5, slot_wide = 6;

// What a block gives to a query: the weighted sum of values, and at the end the largest score and the sum of weights.
int64_t partial_stride(int64_t width) { return gemm_parts::up(width, 16) + 16; }

// `count` queries of each head that shares key-value head g, from `token` on: all of a head, then the next head.
struct Run {
    int64_t b, g, token, count;
};

template <class E, class S>
struct Paged {
    const E* q;
    E* y;                // [B, T, H, K], contiguous
    const S* keys;       // [pages, G, K, page_tokens]
    const S* values;     // [pages, G, page_tokens, K]
    const int32_t* tables;   // [B, table_width], the pages of each row
    const int64_t* lengths;  // tokens of each row before this call
    int64_t rows, heads, groups, tokens, width, page_tokens, table_width;
    int64_t q_row, q_head, q_token;  // strides
    float scale, v_scale;
    int32_t threads;

    int64_t shared() const { return heads / groups; }
    // The keys that a run sees.
    int64_t end(const Run& run) const { return lengths[run.b] + run.token + run.count; }
    // Where key s of a row is, if it is the first of a page; values are as many.
    int64_t place(int64_t b, int64_t g, int64_t s) const {
        return (tables[b * table_width + s / page_tokens] * groups + g) * width * page_tokens;
    }
};

// Room for what `m` queries read widened; none if they read the pages as they are.
float* widened_room(int64_t m, int64_t count) {
    return m > direct_rows ? static_cast<float*>(scratch(count * sizeof(float), slot_wide)) : nullptr;
}

// to [m, keys] = q [m, K] times the keys from `first` on; `keys` of them, within a block.
template <class E, class S>
void scores_of(const Paged<E, S>& a, const Run& run, int64_t m, const float* q, int64_t first, int64_t keys,
               float* to) {
    const int64_t width = a.width, page_tokens = a.page_tokens;
    float* wide = widened_room(m, width * score_stride);
    for (int64_t s = 0; s < keys; s += page_tokens) {
        const S* page = a.keys + a.place(run.b, run.g, first + s);
        const S* next = s + page_tokens < keys ? a.keys + a.place(run.b, run.g, first + s + page_tokens)
                                               : a.values + a.place(run.b, run.g, first);
        const int64_t count = std::min(page_tokens, keys - s);
        if (wide)
            for (int64_t k = 0; k < width; ++k) widen(page + k * page_tokens, count, wide + k * score_stride + s);
        else
            by_four(m, [&](auto rows, int64_t i) {
                score_page<rows()>(q + i * width, width, page, page_tokens, width, count, to + i * score_stride + s,
                                   i > 0 ? page : next);
            });
    }
    if (wide) product(m, keys, width, q, width, wide, score_stride, to, score_stride);
}

// to [m, K] = weights [m, keys] times the values from `first` on.
template <class E, class S>
void values_of(const Paged<E, S>& a, const Run& run, int64_t m, const float* weights, int64_t first, int64_t keys,
               float* to) {
    const int64_t width = a.width, page_tokens = a.page_tokens, stride = partial_stride(width);
    const int64_t after = first + block_keys;
    float* wide = widened_room(m, block_keys * stride);
    for (int64_t s = 0; s < keys; s += page_tokens) {
        const S* page = a.values + a.place(run.b, run.g, first + s);
        const S* next = s + page_tokens < keys ? a.values + a.place(run.b, run.g, first + s + page_tokens)
                        : after < a.end(run)   ? a.keys + a.place(run.b, run.g, after)
                                               : page;
        const int64_t count = std::min(page_tokens, keys - s);
        if (wide)
            for (int64_t i = 0; i < count; ++i) widen(page + i * width, width, wide + (s + i) * stride);
        else
            by_four(m, [&](auto rows, int64_t i) {
                weigh_page<rows()>(weights + i * score_stride + s, page, width, count, s == 0, to + i * stride, stride,
                                   i > 0 ? page : next);
            });
    }
    if (wide) product(m, width, keys, weights, score_stride, wide, stride, to, stride);
}

// How many keys of the block from `first` on the i-th query of a run sees.
template <class E, class S>
int64_t seen_by(const Paged<E, S>& a, const Run& run, int64_t i, int64_t first) {
    return std::clamp<int64_t>(a.lengths[run.b] + run.token + i % run.count + 1 - first, 0, block_keys);
}

// The queries of a run, scaled.
template <class E, class S>
void arrange_queries(const Paged<E, S>& a, const Run& run, float* to) {
    const float scale = a.scale * unit<S>;
    for (int64_t i = 0; i < a.shared() * run.count; ++i) {
        const E* from = a.q + run.b * a.q_row + (run.g * a.shared() + i / run.count) * a.q_head +
                        (run.token + i % run.count) * a.q_token;
        each_vector(a.width, [&](int64_t k, auto lanes) {
            store(to + i * a.width + k, load(from + k, lanes) * scale, lanes);
        });
    }
}

// What the block of keys from `first` on gives to the queries of a run; nothing that is used to those that see none.
template <class E, class S>
void attend_block(const Paged<E, S>& a, const Run& run, const float* q, int64_t first, float* scores, float* partial) {
    const int64_t m = a.shared() * run.count, stride = partial_stride(a.width);
    const int64_t keys = std::min(block_keys, a.end(run) - first);
    scores_of(a, run, m, q, first, keys, scores);
    for (int64_t i = 0; i < m; ++i) {
        float *row = scores + i * score_stride, *end = partial + (i + 1) * stride;
        const int64_t seen = seen_by(a, run, i, first);
        const float top = largest(row, seen);
        std::fill(row + seen, row + keys, 0.0f);
        end[-2] = top;
        end[-1] = exponentials(row, seen, top, [&](int64_t s, vf e, auto lanes) { store(row + s, e, lanes); });
    }
    values_of(a, run, m, scores, first, keys, partial);
}

// One more block for a query.
void merge(const float* block, int64_t width, float* into) {
    const int64_t top = partial_stride(width) - 2, total = top + 1;
    const float most = std::max(into[top], block[top]);
    const float kept = exp_below(broadcast(into[top] - most))[0], share = exp_below(broadcast(block[top] - most))[0];
    each_vector(width, [&](int64_t k, auto lanes) {
        store(into + k, fma(broadcast(share), load(block + k, lanes), load(into + k, lanes) * kept), lanes);
    });
    into[total] = into[total] * kept + block[total] * share;
    into[top] = most;
}

template <class E, class S>
void finish(const Paged<E, S>& a, const Run& run, int64_t i, const float* sums) {
    const int64_t token = run.token + i % run.count, head = run.g * a.shared() + i / run.count;
    E* to = a.y + ((run.b * a.tokens + token) * a.heads + head) * a.width;
    const float total = sums[partial_stride(a.width) - 1], scale = a.v_scale * unit<S>;
    each_vector(a.width, [&](int64_t k, auto lanes) { store(to + k, load(sums + k, lanes) / total * scale, lanes); });
}

// A task is a block of keys; partial results are put together afterwards. For a few rows of a few tokens.
template <class E, class S>
void attend_by_blocks(const Paged<E, S>& a) {
    const int64_t m = a.shared() * a.tokens, stride = partial_stride(a.width);
    const int64_t longest = *std::max_element(a.lengths, a.lengths + a.rows) + a.tokens;
    const int64_t blocks = (longest + block_keys - 1) / block_keys;
    float* partial = static_cast<float*>(scratch(a.rows * a.groups * blocks * m * stride * sizeof(float), slot_blocks));
    parallel_for(a.rows * a.groups * blocks, a.threads, [&](int64_t task) {
        const Run run{task / blocks / a.groups, task / blocks % a.groups, 0, a.tokens};
        const int64_t first = task % blocks * block_keys;
        if (first >= a.lengths[run.b] + a.tokens) return;
        float* q = static_cast<float*>(scratch(m * (a.width + score_stride) * sizeof(float), slot_run));
        arrange_queries(a, run, q);
        attend_block(a, run, q, first, q + m * a.width, partial + task * m * stride);
    });
    parallel_for(a.rows * a.groups, a.threads, [&](int64_t task) {
        const Run run{task / a.groups, task % a.groups, 0, a.tokens};
        for (int64_t i = 0; i < m; ++i) {
            float* sums = partial + (task * blocks * m + i) * stride;
            for (int64_t block = 1; seen_by(a, run, i, block * block_keys) > 0; ++block)
                merge(sums + block * m * stride, a.width, sums);
            finish(a, run, i, sums);
        }
    });
}

// A task is a run of queries over all the keys they see.
template <class E, class S>
void attend_by_runs(const Paged<E, S>& a, int64_t count) {
    const int64_t runs = (a.tokens + count - 1) / count, stride = partial_stride(a.width);
    parallel_for(a.rows * a.groups * runs, a.threads, [&](int64_t task) {
        const int64_t token = (runs - 1 - task / a.groups / a.rows) * count;  // the longest first
        const Run run{task / a.groups % a.rows, task % a.groups, token, std::min(count, a.tokens - token)};
        const int64_t m = a.shared() * run.count;
        float* q = static_cast<float*>(scratch(m * (a.width + score_stride + 2 * stride) * sizeof(float), slot_run));
        float *scores = q + m * a.width, *sums = scores + m * score_stride, *partial = sums + m * stride;
        arrange_queries(a, run, q);
        attend_block(a, run, q, 0, scores, sums);
        for (int64_t first = block_keys; first < a.end(run); first += block_keys) {
            attend_block(a, run, q, first, scores, partial);
            for (int64_t i = 0; i < m; ++i)
                if (seen_by(a, run, i, first) > 0) merge(partial + i * stride, a.width, sums + i * stride);
        }
        for (int64_t i = 0; i < m; ++i) finish(a, run, i, sums + i * stride);
    });
}

template <class E, class S>
void attend(const Paged<E, S>& a) {
    const int64_t count = std::min(std::max<int64_t>(run_rows / a.shared(), 1), a.tokens);
    const bool enough = a.rows * a.groups >= 4 * a.threads || a.threads == 1;
    count < a.tokens || enough ? attend_by_runs(a, count) : attend_by_blocks(a);
}

// Keys and values of new tokens, behind those that are there; `k` and `v` have the same strides.
template <class E, class S>
void append(const E* k, const E* v, S* keys, S* values, const int32_t* tables, const int64_t* lengths, int64_t rows,
            int64_t groups, int64_t tokens, int64_t width, int64_t page_tokens, int64_t table_width, int64_t row,
            int64_t head, int64_t token, float k_scale, float v_scale) {
    S* column = static_cast<S*>(scratch(width * sizeof(S), slot_run));
    for (int64_t b = 0; b < rows; ++b)
        for (int64_t t = 0; t < tokens; ++t)
            for (int64_t g = 0; g < groups; ++g) {
                const int64_t s = lengths[b] + t, from = b * row + g * head + t * token, at = s % page_tokens;
                const int64_t page = (tables[b * table_width + s / page_tokens] * groups + g) * width * page_tokens;
                each_vector(width, [&](int64_t i, auto lanes) {
                    store(column + i, load(k + from + i, lanes) / k_scale, lanes);
                    store(values + page + at * width + i, load(v + from + i, lanes) / v_scale, lanes);
                });
                for (int64_t i = 0; i < width; ++i) keys[page + i * page_tokens + at] = column[i];
            }
}

template <class E, class F>
void with_stored(int32_t coded, F&& call) {
    coded ? call(static_cast<fp8*>(nullptr)) : call(static_cast<E*>(nullptr));
}

}  // namespace
}  // namespace seqloom

// `sizes` are rows, heads, groups, tokens, width, page_tokens, table_width and the strides of q by row, head and token.
#define SEQLOOM_PAGED_ATTENTION(E, NAME)                                                                               \
    extern "C" void seqloom_paged_attention_##NAME(const E* q, E* y, const void* keys, const void* values,             \
                                                   const int32_t* tables, const int64_t* lengths,                     \
                                                   const int64_t* sizes, int32_t coded, float scale, float v_scale,    \
                                                   int32_t threads) {                                                  \
        const int64_t* n = sizes;                                                                                      \
        seqloom::with_stored<E>(coded, [&](auto* stored) {                                                             \
            using S = std::remove_pointer_t<decltype(stored)>;                                                         \
            seqloom::attend(seqloom::Paged<E, S>{q, y, static_cast<const S*>(keys), static_cast<const S*>(values),     \
                                                 tables, lengths, n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7],      \
                                                 n[8], n[9], scale, v_scale, threads});                                \
        });                                                                                                            \
    }                                                                                                                  \
    extern "C" void seqloom_paged_append_##NAME(const E* k, const E* v, void* keys, void* values,                      \
                                                const int32_t* tables, const int64_t* lengths, const int64_t* sizes,   \
                                                int32_t coded, float k_scale, float v_scale) {                         \
        const int64_t* n = sizes;                                                                                      \
        seqloom::with_stored<E>(coded, [&](auto* stored) {                                                             \
            using S = std::remove_pointer_t<decltype(stored)>;                                                         \
            seqloom::append(k, v, static_cast<S*>(keys), static_cast<S*>(values), tables, lengths, n[0], n[2], n[3],   \
                            n[4], n[5], n[6], n[7], n[8], n[9], k_scale, v_scale);                                     \
        });                                                                                                            \
    }

SEQLOOM_PAGED_ATTENTION(float, f32)
SEQLOOM_PAGED_ATTENTION(seqloom::bf16, bf16)
