// All layers of a model for a few tokens of generation and the norm behind them, in one call: every layer is the call of
// its own file, so the bits are the same. One after the other from outside, threads would fall asleep in between.
#include "step.h"

namespace seqloom {
namespace {

// What a layer is told beside its norm and its matrices; the classes of these names in stack_step.py have the same fields.
struct MlpLayer {
    int64_t hidden_width;
};
struct MambaLayer {
    const void *slots, *mixing;
    const float* gated_gain;
};
struct AttentionLayer {
    int64_t heads, groups, head_width, page_tokens;
    void *keys, *values;
    float k_scale, v_scale, scale;
    int32_t coded;
};
struct MoeLayer {
    const Matrix *up, *down;
    const float* bias;
    int64_t inner_width, expert_width, shared_width, experts, top_k, groups, top_groups;
    int32_t latent, normalize;
    float scaling;
};

enum LayerKind : int32_t { mlp_layer, mamba_layer, attention_layer, moe_layer };

struct StackedLayer {
    const float* gain;
    const Matrix* matrices;
    const void* more;
    float eps;
    int32_t kind;
};

// The tokens of a call, and where its rows remember.
struct Rows {
    int64_t batch, tokens, width, first, table_width;
    const int32_t* tables;
    const int64_t* lengths;
    int32_t guessed, threads;
};

template <class E>
struct Layers;

}  // namespace
}  // namespace seqloom

#define SEQLOOM_LAYERS_OF(E, NAME)                                                                                     \
    extern "C" void seqloom_mlp_step_##NAME(const E*, E*, int64_t, int64_t, const float*, float,                       \
                                            const seqloom::Matrix*, int64_t, int32_t);                                 \
    extern "C" void seqloom_mamba_rows_##NAME(const E*, E*, int64_t, int64_t, const float*, float,                     \
                                              const seqloom::Matrix*, const void*, const void*, const float*, int64_t, \
                                              int64_t, int32_t, int32_t);                                              \
    extern "C" void seqloom_paged_attention_step_##NAME(                                                               \
        const E*, E*, int64_t, int64_t, const float*, float, const seqloom::Matrix*, int64_t, int64_t, int64_t,        \
        int64_t, int64_t, int64_t, int64_t, const int32_t*, const int64_t*, void*, void*, int32_t, float, float,       \
        float, int32_t);                                                                                               \
    extern "C" void seqloom_moe_step_##NAME(const E*, E*, int64_t, int64_t, const float*, float,                       \
                                            const seqloom::Matrix*, const seqloom::Matrix*, const seqloom::Matrix*,    \
                                            int32_t, int64_t, int64_t, int64_t, const float*, int64_t, int64_t,        \
                                            int64_t, int64_t, int32_t, float, int32_t);                                \
    template <>                                                                                                        \
    struct seqloom::Layers<E> {                                                                                        \
        static constexpr auto mlp = seqloom_mlp_step_##NAME;                                                           \
        static constexpr auto mamba = seqloom_mamba_rows_##NAME;                                                       \
        static constexpr auto attention = seqloom_paged_attention_step_##NAME;                                         \
        static constexpr auto moe = seqloom_moe_step_##NAME;                                                           \
    };

SEQLOOM_LAYERS_OF(float, f32)
SEQLOOM_LAYERS_OF(bf16, bf16)

namespace seqloom {
namespace {

template <class E>
void step(const E* x, E* y, const StackedLayer& layer, const Rows& of) {
    using L = Layers<E>;
    const int64_t rows = of.batch * of.tokens;
    const float *gain = layer.gain, eps = layer.eps;
    if (layer.kind == mlp_layer) {
        const MlpLayer& m = *static_cast<const MlpLayer*>(layer.more);
        L::mlp(x, y, rows, of.width, gain, eps, layer.matrices, m.hidden_width, of.threads);
    } else if (layer.kind == mamba_layer) {
        const MambaLayer& m = *static_cast<const MambaLayer*>(layer.more);
        L::mamba(x, y, rows, of.width, gain, eps, layer.matrices, m.slots, m.mixing, m.gated_gain, of.first, of.batch,
                 of.guessed, of.threads);
    } else if (layer.kind == attention_layer) {
        const AttentionLayer& m = *static_cast<const AttentionLayer*>(layer.more);
        L::attention(x, y, rows, of.width, gain, eps, layer.matrices, of.batch, of.tokens, m.heads, m.groups,
                     m.head_width, m.page_tokens, of.table_width, of.tables, of.lengths, m.keys, m.values, m.coded,
                     m.k_scale, m.v_scale, m.scale, of.threads);
    } else {
        const MoeLayer& m = *static_cast<const MoeLayer*>(layer.more);
        L::moe(x, y, rows, of.width, gain, eps, layer.matrices, m.up, m.down, m.latent, m.inner_width, m.expert_width,
               m.shared_width, m.bias, m.experts, m.top_k, m.groups, m.top_groups, m.normalize, m.scaling, of.threads);
    }
}

template <class E>
void steps(const E* x, E* y, E* between, const StackedLayer* layers, int64_t count, const float* gain, float eps,
           const Rows& of) {
    const int64_t rows = of.batch * of.tokens;
    for (int64_t i = 0; i < count; ++i) {
        E* to = between + i % 2 * rows * of.width;
        step(x, to, layers[i], of);
        x = to;
    }
    Kernels<E>::rms_norm(x, of.width, gain, eps, y, room<float>(8, rows), rows, of.width, of.threads);
}

}  // namespace
}  // namespace seqloom

// x and y are [rows, width], `between` is room for two of them; `gain` and `eps` are of the last norm.
#define SEQLOOM_STACK_STEP(E, NAME)                                                                                 \
    extern "C" void seqloom_stack_step_##NAME(const E* x, E* y, E* between, const seqloom::StackedLayer* layers,    \
                                              int64_t count, const float* gain, float eps, const seqloom::Rows* of) { \
        seqloom::steps(x, y, between, layers, count, gain, eps, *of);                                               \
    }

SEQLOOM_STACK_STEP(float, f32)
SEQLOOM_STACK_STEP(bf16, bf16)
