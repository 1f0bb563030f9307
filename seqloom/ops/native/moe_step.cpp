// An expert layer for a few tokens of generation, in one call: y = x + mixer(norm(x)); and what its router does, which
// the modules call too:
//
//     p = sigmoid(logits)     chosen = the K largest of p + bias, within the best groups     w = p[chosen] / sum · scaling
//
// A group is as good as its two largest together; of equals the first are taken. As in step.cpp, all else is done by the
// kernels of the single ops in the order of the modules. Idle experts are not touched, and the matrices of the others are
// read once for all their rows, expert beside expert on several threads.
#include <algorithm>
#include <limits>

#include "step.h"

extern "C" void seqloom_best_experts(const float*, const float*, int64_t*, int64_t, int64_t, int64_t, int32_t);

#define SEQLOOM_EXPERTS_OF(E, NAME)                                                                                \
    extern "C" void seqloom_experts_stored_##NAME(const E*, const int64_t*, const float*, const seqloom::Matrix*, \
                                                  const seqloom::Matrix*, int32_t*, float*, E*, int64_t, int64_t, \
                                                  int64_t, int64_t, int64_t, int32_t);                             \
    template <>                                                                                                    \
    struct Experts<E> {                                                                                            \
        static constexpr auto stored = seqloom_experts_stored_##NAME;                                              \
    };

namespace seqloom {

template <class E>
struct Experts;
SEQLOOM_EXPERTS_OF(float, f32)
SEQLOOM_EXPERTS_OF(bf16, bf16)

namespace {

constexpr int64_t block = 64;  // tokens of a task

struct Router {
    const float* bias;  // [experts]
    int64_t experts, top_k, groups, top_groups;
    int32_t normalize;
    float scaling;
};

// p + bias of so many tokens, minus infinity outside their best groups.
const float* within_groups(const Router& r, const float* p, int64_t tokens) {
    const int64_t size = r.experts / r.groups, pair = std::min<int64_t>(2, size);
    float* biased = room<float>(6, tokens * (r.experts + r.groups));
    float* of_groups = biased + tokens * r.experts;
    int64_t* largest = room<int64_t>(7, tokens * (r.groups * pair + r.top_groups));
    int64_t* best = largest + tokens * r.groups * pair;
    for (int64_t s = 0; s < tokens; ++s)
        each_vector(r.experts, [&](int64_t i, auto lanes) {
            store(biased + s * r.experts + i, load(p + s * r.experts + i, lanes) + load(r.bias + i, lanes), lanes);
        });
    seqloom_best_experts(biased, nullptr, largest, tokens * r.groups, size, pair, 1);
    for (int64_t i = 0; i < tokens * r.groups; ++i) {
        of_groups[i] = biased[i * size + largest[i * pair]];
        if (pair == 2) of_groups[i] += biased[i * size + largest[i * pair + 1]];
    }
    seqloom_best_experts(of_groups, nullptr, best, tokens, r.groups, r.top_groups, 1);
    for (int64_t s = 0; s < tokens; ++s, best += r.top_groups)
        for (int64_t g = 0; g < r.groups; ++g)
            if (std::find(best, best + r.top_groups, g) == best + r.top_groups)
                std::fill_n(biased + (s * r.groups + g) * size, size, -std::numeric_limits<float>::infinity());
    return biased;
}

// logits and scores p are [S, experts], chosen and weights [S, top_k].
void route(const Router& r, const float* logits, float* scores, int64_t* chosen, float* weights, int64_t S,
           int32_t threads) {
    parallel_for((S + block - 1) / block, threads, [&](int64_t task) {
        const int64_t first = task * block, tokens = std::min(block, S - first);
        float *p = scores + first * r.experts, *w = weights + first * r.top_k;
        int64_t* best = chosen + first * r.top_k;
        each_vector(tokens * r.experts, [&](int64_t i, auto lanes) {
            store(p + i, sigmoid(load(logits + first * r.experts + i, lanes)), lanes);
        });
        if (r.groups == 1) seqloom_best_experts(p, r.bias, best, tokens, r.experts, r.top_k, 1);
        else seqloom_best_experts(within_groups(r, p, tokens), nullptr, best, tokens, r.experts, r.top_k, 1);
        for (int64_t s = 0; s < tokens; ++s, p += r.experts, w += r.top_k, best += r.top_k) {
            float sum = 0;
            for (int64_t k = 0; k < r.top_k; ++k) sum += w[k] = p[best[k]];
            for (int64_t k = 0; k < r.top_k; ++k) w[k] = (r.normalize ? w[k] / (sum + 1e-20f) : w[k]) * r.scaling;
        }
    });
}

struct Moe {
    const Router& router;
    const Matrix &gate, &shared_up, &shared_down;
    const Matrix* latent;  // into the narrow width and back, if there is one
    const Matrix *up, *down;  // of every expert
    int64_t inner_width, expert_width, shared_width;
};

template <class E>
void moe(const Layer<E>& a, const Moe& m) {
    const int64_t S = a.rows, n = S * a.width, inner = S * m.inner_width, K = m.router.top_k, experts = m.router.experts;
    E *normed = room<E>(8, 2 * n + 2 * inner + S * m.shared_width), *mixed = normed + n, *latent = mixed + n;
    E *routed = latent + inner, *hidden = routed + inner;
    float *wide = room<float>(9, n + 2 * S * experts + S * K), *logits = wide + n, *scores = logits + S * experts;
    float *weights = scores + S * experts, *outputs = room<float>(10, S * K * m.inner_width + S);
    int64_t* chosen = room<int64_t>(11, S * K);

    a.norm(normed, outputs);
    convert(normed, n, wide);
    Kernels<float>::matvec(wide, &m.gate, logits, S, experts, a.width, a.width, a.threads);
    route(m.router, logits, scores, chosen, weights, S, a.threads);

    if (m.latent) a.product(normed, m.latent[0], latent, m.inner_width, a.width);
    Experts<E>::stored(m.latent ? latent : normed, chosen, weights, m.up, m.down,
                       room<int32_t>(12, 2 * S * K + experts + 1), outputs, routed, S, K, experts, m.inner_width,
                       m.expert_width, a.threads);
    if (m.latent) a.product(routed, m.latent[1], mixed, a.width, m.inner_width);

    a.product(normed, m.shared_up, hidden, m.shared_width, a.width);
    Kernels<E>::squared_relu(hidden, hidden, S * m.shared_width, a.threads);
    a.product(hidden, m.shared_down, normed, a.width, m.shared_width);
    const E* of_experts = m.latent ? mixed : routed;
    each_vector(n, [&](int64_t i, auto lanes) {
        store(normed + i, load(of_experts + i, lanes) + load(normed + i, lanes), lanes);
    });
    a.add_input(normed);
}

}  // namespace
}  // namespace seqloom

extern "C" void seqloom_route(const float* logits, float* scores, int64_t* chosen, float* weights, int64_t S,
                              const float* bias, int64_t experts, int64_t top_k, int64_t groups, int64_t top_groups,
                              int32_t normalize, float scaling, int32_t threads) {
    seqloom::route({bias, experts, top_k, groups, top_groups, normalize, scaling}, logits, scores, chosen, weights, S,
                   threads);
}

// `matrices`: of the router, the shared expert's two, and the two around the experts if their width `inner_width` is
// `latent`; `up` and `down` of all experts.
#define SEQLOOM_MOE_STEP(E, NAME)                                                                                     \
    extern "C" void seqloom_moe_step_##NAME(                                                                          \
        const E* x, E* y, int64_t rows, int64_t width, const float* gain, float eps, const seqloom::Matrix* matrices, \
        const seqloom::Matrix* up, const seqloom::Matrix* down, int32_t latent, int64_t inner_width,                  \
        int64_t expert_width, int64_t shared_width, const float* bias, int64_t experts, int64_t top_k,                \
        int64_t groups, int64_t top_groups, int32_t normalize, float scaling, int32_t threads) {                      \
        const seqloom::Router router{bias, experts, top_k, groups, top_groups, normalize, scaling};                   \
        seqloom::moe<E>({rows, width, x, y, gain, eps, threads},                                                      \
                        {router, matrices[0], matrices[1], matrices[2], latent ? matrices + 3 : nullptr, up, down,    \
                         inner_width, expert_width, shared_width});                                                   \
    }

SEQLOOM_MOE_STEP(float, f32)
SEQLOOM_MOE_STEP(seqloom::bf16, bf16)
