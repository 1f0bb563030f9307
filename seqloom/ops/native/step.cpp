// One layer for a few tokens of generation, in one call: y = x + mixer(norm(x)), for the mixers that are not experts.
//
// All arithmetic is that of the kernels of the single ops, called in the order of the modules, so the bits are theirs.
// What is saved is everything around them, which for a few tokens costs more than the work itself.
#include "step.h"

namespace seqloom {
namespace {

template <class E>
void mlp(const Layer<E>& a, const Matrix& up, const Matrix& down, int64_t hidden_width) {
    const int64_t n = a.rows * a.width, hidden = a.rows * hidden_width;
    E *normed = room<E>(8, n), *active = room<E>(9, hidden);
    a.norm(normed, room<float>(10, a.rows));
    a.product(normed, up, active, hidden_width, a.width);
    Kernels<E>::squared_relu(active, active, hidden, a.threads);
    a.product(active, down, normed, a.width, hidden_width);
    a.add_input(normed);
}

struct Mamba {
    int64_t batch, tokens, heads, head_width, groups, state_width, taps;
    const Matrix &in, &out;
    const void *conv, *conv_bias;
    int32_t narrow_conv;  // taps and bias are in BF16
    const float *dt_bias, *rates, *skip, *gated_gain;
    const void* window;
    void* next_window;
    const float* state;
    float* next_state;  // may be `state` itself
};

template <class E>
void mamba(const Layer<E>& a, const Mamba& m) {
    using K = Kernels<E>;
    const int64_t rows = a.rows, inner = m.heads * m.head_width, shared = m.groups * m.state_width;
    const int64_t channels = inner + 2 * shared, all = inner + channels + m.heads;
    E *normed = room<E>(8, rows * a.width), *projected = room<E>(9, rows * all), *xbc = room<E>(10, rows * channels);
    E *scanned = room<E>(11, rows * inner), *gated = room<E>(12, rows * inner);
    float *dt = room<float>(13, rows * m.heads), *inverse = room<float>(14, rows * (m.groups + 1));

    a.norm(normed, inverse);
    a.product(normed, m.in, projected, all, a.width);  // z, xbc and dt side by side
    K::causal_conv(projected + inner, m.tokens * all, all, m.conv, m.conv_bias, m.narrow_conv,
                   static_cast<const E*>(m.window), nullptr, xbc, static_cast<E*>(m.next_window), m.batch, m.tokens,
                   channels, m.taps, a.threads);
    for (int64_t row = 0; row < rows; ++row)
        each_vector(m.heads, [&](int64_t i, auto lanes) {
            store(dt + row * m.heads + i, load(projected + row * all + inner + channels + i, lanes), lanes);
        });
    const int64_t per_row = m.tokens * channels;
    const int64_t sizes[] = {m.batch, m.tokens, m.heads, m.head_width, m.groups, m.state_width, m.tokens,
                             per_row, channels, m.head_width, per_row, channels, m.state_width, per_row, channels,
                             m.state_width, m.tokens * m.heads, m.heads, 1};
    K::ssd_step(sizes, xbc, xbc + inner, xbc + inner + shared, dt, m.dt_bias, m.rates, m.skip, m.state, nullptr, scanned,
                m.next_state, a.threads);
    K::gated_norm(scanned, inner, projected, all, m.gated_gain, a.eps, gated, inverse, rows, m.groups, inner / m.groups,
                  a.threads);
    a.product(gated, m.out, normed, a.width, inner);
    a.add_input(normed);
}

struct Memory {
    int64_t batch, tokens, heads, groups, head_width;
    const Matrix &q, &k, &v, &o;
    void *keys, *values;     // [batch, groups, room, head_width]
    int64_t reserved;        // tokens there is room for
    const int64_t* lengths;  // before these tokens, which are put behind them
    float scale;
};

template <class E>
void append(const E* from, E* to, const Memory& m) {
    for (int64_t b = 0; b < m.batch; ++b)
        for (int64_t t = 0; t < m.tokens; ++t)
            for (int64_t g = 0; g < m.groups; ++g, from += m.head_width)
                std::memcpy(to + ((b * m.groups + g) * m.reserved + m.lengths[b] + t) * m.head_width, from,
                            m.head_width * sizeof(E));
}

template <class E>
void attention(const Layer<E>& a, const Memory& m) {
    const int64_t wide = m.heads * m.head_width, narrow = m.groups * m.head_width;
    E *normed = room<E>(8, a.rows * a.width), *q = room<E>(9, a.rows * wide), *mixed = room<E>(10, a.rows * wide);
    E* fresh = room<E>(11, a.rows * narrow);
    a.norm(normed, room<float>(12, a.rows));
    a.product(normed, m.q, q, wide, a.width);
    a.product(normed, m.k, fresh, narrow, a.width);
    append(fresh, static_cast<E*>(m.keys), m);
    a.product(normed, m.v, fresh, narrow, a.width);
    append(fresh, static_cast<E*>(m.values), m);
    Kernels<E>::attention(q, m.keys, m.values, mixed, m.lengths, m.batch, m.heads, m.groups, m.tokens, m.head_width,
                          m.tokens * wide, m.head_width, wide, m.groups * m.reserved * m.head_width, m.reserved * m.head_width,
                          m.head_width, m.scale, 1, a.threads);
    a.product(mixed, m.o, normed, a.width, wide);
    a.add_input(normed);
}

}  // namespace
}  // namespace seqloom

// `matrices` are those of the mixer in its order; x and y may not be the same.
#define SEQLOOM_STEPS(E, NAME)                                                                                         \
    extern "C" void seqloom_mlp_step_##NAME(const E* x, E* y, int64_t rows, int64_t width, const float* gain,          \
                                            float eps, const seqloom::Matrix* matrices, int64_t hidden_width,          \
                                            int32_t threads) {                                                         \
        seqloom::mlp<E>({rows, width, x, y, gain, eps, threads}, matrices[0], matrices[1], hidden_width);              \
    }                                                                                                                  \
    extern "C" void seqloom_mamba_step_##NAME(                                                                         \
        const E* x, E* y, int64_t rows, int64_t width, const float* gain, float eps, const seqloom::Matrix* matrices,  \
        int64_t batch, int64_t tokens, int64_t heads, int64_t head_width, int64_t groups, int64_t state_width,         \
        int64_t taps, const void* conv, const void* conv_bias, int32_t narrow_conv, const float* dt_bias,              \
        const float* rates, const float* skip, const float* gated_gain, const void* window, void* next_window,         \
        const float* state, float* next_state, int32_t threads) {                                                      \
        seqloom::mamba<E>({rows, width, x, y, gain, eps, threads},                                                     \
                          {batch, tokens, heads, head_width, groups, state_width, taps, matrices[0], matrices[1],      \
                           conv, conv_bias, narrow_conv, dt_bias, rates, skip, gated_gain, window, next_window, state, \
                           next_state});                                                                               \
    }                                                                                                                  \
    extern "C" void seqloom_attention_step_##NAME(                                                                     \
        const E* x, E* y, int64_t rows, int64_t width, const float* gain, float eps, const seqloom::Matrix* matrices,  \
        int64_t batch, int64_t tokens, int64_t heads, int64_t groups, int64_t head_width, void* keys, void* values,    \
        int64_t reserved, const int64_t* lengths, float scale, int32_t threads) {                                      \
        seqloom::attention<E>({rows, width, x, y, gain, eps, threads},                                                 \
                              {batch, tokens, heads, groups, head_width, matrices[0], matrices[1], matrices[2],        \
                               matrices[3], keys, values, reserved, lengths, scale});                                  \
    }

SEQLOOM_STEPS(float, f32)
SEQLOOM_STEPS(seqloom::bf16, bf16)

namespace seqloom {

// Numbers that were copied, and what they were then; `_Kept` in step.py has the same fields.
struct Kept {
    const void *now, *before;
    int64_t bytes;
};

}  // namespace seqloom

// Whether all of them are what they were.
extern "C" void seqloom_as_kept(const seqloom::Kept* parts, int64_t count, int32_t* same) {
    *same = 1;
    for (const seqloom::Kept* part = parts; part < parts + count; ++part)
        if (std::memcmp(part->now, part->before, part->bytes) != 0) *same = 0;
}
