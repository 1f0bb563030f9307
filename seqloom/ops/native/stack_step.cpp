// All layers of a model for a few tokens of generation and the norm behind them, in one call: every layer is the call of
// its own file, so the bits are the same. One after the other from outside, threads would fall asleep in between. And the
// whole step, from token ids to the choice of the next ones: rows of the table of embeddings in front, the output head
// and token_draw.h behind.
#include <algorithm>

#include "step.h"
#include "token_draw.h"

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
    int64_t* lengths;
    int32_t guessed, threads;
};

// What is around the layers.
struct Ends {
    const void* embeddings;  // [vocabulary, width]
    const Matrix* head;      // [vocabulary, width]
    int64_t vocabulary;
    int32_t narrow;  // embeddings are in BF16
};

// The tokens of a step [batch, tokens], and what becomes of them; keys and choices are those of all steps of a call.
struct Choices {
    const int64_t* tokens;
    const Race* races;     // of every row; a sharpness below 0 leaves the choice to others
    const uint64_t* keys;  // of every token's race
    float* logits;         // [batch, tokens, vocabulary]; null if nobody else needs them
    int64_t* chosen;
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

constexpr int slot_x = 16, slot_logits = 17;

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

template <class E>
void whole_steps(const StackedLayer* layers, int64_t count, const float* gain, float eps, const Rows& of,
                 const Ends& ends, const Choices& to, int64_t times, E* hidden) {
    constexpr bool wide = sizeof(E) == sizeof(float);
    const int64_t places = of.batch * of.tokens, numbers = places * of.width, V = ends.vocabulary;
    E* x = room<E>(slot_x, 3 * numbers + (wide ? 0 : places * V));
    float* logits = to.logits ? to.logits : room<float>(slot_logits, places * V);
    E* stored = wide ? reinterpret_cast<E*>(logits) : x + 3 * numbers;
    const int64_t* tokens = to.tokens;
    const uint64_t* keys = to.keys;
    int64_t* chosen = to.chosen;
    for (int64_t time = 0; time < times; ++time) {
        if (time > 0 && of.lengths)
            for (int64_t b = 0; b < of.batch; ++b) of.lengths[b] += of.tokens;
        (ends.narrow ? embed<bf16, E> : embed<float, E>)(ends.embeddings, tokens, places, of.width, x);
        steps(x, hidden, x + numbers, layers, count, gain, eps, of);
        Kernels<E>::matvec(hidden, ends.head, stored, places, V, of.width, of.width, of.threads);
        parallel_for(places, of.threads, [&](int64_t place) {
            float* to_choose = logits + place * V;
            if (!wide) convert(stored + place * V, V, to_choose);
            const Race& race = to.races[place / of.tokens];
            if (race.sharpness >= 0) chosen[place] = seqloom_token_choice(to_choose, V, &race, keys[place]);
        });
        tokens = chosen;
        chosen += places, keys += places, hidden += numbers;
    }
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

// So many steps, each fed the tokens that the one before chose; `hidden` is [times, rows, width].
#define SEQLOOM_WHOLE_STEPS(E, NAME)                                                                                  \
    extern "C" void seqloom_whole_steps_##NAME(const seqloom::StackedLayer* layers, int64_t count, const float* gain, \
                                               float eps, const seqloom::Rows* of, const seqloom::Ends* ends,         \
                                               const seqloom::Choices* to, int64_t times, E* hidden) {                \
        seqloom::whole_steps(layers, count, gain, eps, *of, *ends, *to, times, hidden);                               \
    }

SEQLOOM_WHOLE_STEPS(float, f32)
SEQLOOM_WHOLE_STEPS(bf16, bf16)
