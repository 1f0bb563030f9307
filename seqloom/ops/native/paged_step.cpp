// An attention layer over pages for a few tokens of generation, in one call; see step.cpp.
#include "step.h"

#define SEQLOOM_PAGED_KERNELS(E, NAME)                                                                                 \
    extern "C" void seqloom_paged_attention_##NAME(const E*, E*, const void*, const void*, const int32_t*,             \
                                                   const int64_t*, const int64_t*, int32_t, float, float, int32_t);    \
    extern "C" void seqloom_paged_append_##NAME(const E*, const E*, void*, void*, const int32_t*, const int64_t*,      \
                                                const int64_t*, int32_t, float, float);                                \
    template <>                                                                                                        \
    struct seqloom::PagedKernels<E> {                                                                                  \
        static constexpr auto attention = seqloom_paged_attention_##NAME;                                              \
        static constexpr auto append = seqloom_paged_append_##NAME;                                                    \
    };

namespace seqloom {

template <class E>
struct PagedKernels;

}  // namespace seqloom

SEQLOOM_PAGED_KERNELS(float, f32)
SEQLOOM_PAGED_KERNELS(seqloom::bf16, bf16)

namespace seqloom {
namespace {

struct Paged {
    int64_t batch, tokens, heads, groups, head_width, page_tokens, table_width;
    const int32_t* tables;
    const int64_t* lengths;  // before these tokens, which are put behind them
    void *keys, *values;
    int32_t coded;  // keys and values are E4M3
    float k_scale, v_scale, scale;  // the last one of scores, that of keys in it
};

template <class E>
void paged_attention(const Layer<E>& a, const Matrix* matrices, const Paged& m) {
    const int64_t wide = m.heads * m.head_width, narrow = m.groups * m.head_width;
    E *normed = room<E>(8, a.rows * a.width), *q = room<E>(9, a.rows * wide), *mixed = room<E>(10, a.rows * wide);
    E *k = room<E>(11, a.rows * narrow), *v = room<E>(12, a.rows * narrow);
    a.norm(normed, room<float>(13, a.rows));
    a.product(normed, matrices[0], q, wide, a.width);
    a.product(normed, matrices[1], k, narrow, a.width);
    a.product(normed, matrices[2], v, narrow, a.width);
    int64_t sizes[] = {m.batch, m.heads, m.groups, m.tokens, m.head_width, m.page_tokens, m.table_width,
                       m.tokens * narrow, m.head_width, narrow};
    PagedKernels<E>::append(k, v, m.keys, m.values, m.tables, m.lengths, sizes, m.coded, m.k_scale, m.v_scale);
    sizes[7] = m.tokens * wide;
    sizes[9] = wide;
    PagedKernels<E>::attention(q, mixed, m.keys, m.values, m.tables, m.lengths, sizes, m.coded, m.scale, m.v_scale,
                               a.threads);
    a.product(mixed, matrices[3], normed, a.width, wide);
    a.add_input(normed);
}

}  // namespace
}  // namespace seqloom

// `matrices` are those of queries, keys, values and the output; x and y may not be the same.
#define SEQLOOM_PAGED_STEP(E, NAME)                                                                                    \
    extern "C" void seqloom_paged_attention_step_##NAME(                                                               \
        const E* x, E* y, int64_t rows, int64_t width, const float* gain, float eps, const seqloom::Matrix* matrices,  \
        int64_t batch, int64_t tokens, int64_t heads, int64_t groups, int64_t head_width, int64_t page_tokens,         \
        int64_t table_width, const int32_t* tables, const int64_t* lengths, void* keys, void* values, int32_t coded,   \
        float k_scale, float v_scale, float scale, int32_t threads) {                                                  \
        seqloom::paged_attention<E>({rows, width, x, y, gain, eps, threads}, matrices,                                 \
                                    {batch, tokens, heads, groups, head_width, page_tokens, table_width, tables,       \
                                     lengths, keys, values, coded, k_scale, v_scale, scale});                          \
    }

SEQLOOM_PAGED_STEP(float, f32)
SEQLOOM_PAGED_STEP(seqloom::bf16, bf16)
