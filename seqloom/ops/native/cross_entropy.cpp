// Loss of rows of logits and, in their place, its gradient; see cross_entropy.py.
//
// A row stays in the cache from its maximum to its gradient, so logits travel from memory and back once. FP32 logits
// keep exp(x - max) between the sum and the gradient; narrower ones would lose it and compute it twice.
#include "lanes.h"
#include "softmax.h"
#include "threads.h"

namespace seqloom {
namespace {

template <class T>
float at(const T* p) {
    const vf x = load(p, 1);
    return x[0];
}

template <class T>
void loss_row(T* x, int64_t n, int64_t target, float z_weight, bool want_gradient, float* nats, float* penalty) {
    const bool keeps = want_gradient && sizeof(T) == sizeof(float);
    const float most = largest(x, n), hit = at(x + target);
    const float total = exponentials(x, n, most, [&](int64_t i, vf e, auto lanes) {
        if (keeps) store(x + i, e, lanes);
    });
    const float normalizer = most + std::log(total);
    *nats = (most - hit) + std::log(total);  // not by way of the normalizer, which rounds more where logits are large
    *penalty = z_weight * normalizer * normalizer;
    if (!want_gradient) return;
    const float pull = 1.0f + 2.0f * z_weight * normalizer;
    const float factor = pull / total, target_gradient = std::exp(hit - most) * factor - 1.0f;
    each_vector(n, [&](int64_t i, auto lanes) {
        const vf value = load(x + i, lanes);
        store(x + i, (keeps ? value : exp_below(value - most)) * factor, lanes);
    });
    store(x + target, broadcast(target_gradient), 1);
}

template <class T>
void loss_rows(T* logits, const int64_t* targets, float z_weight, bool want_gradient, float* nats, float* penalty,
               int64_t rows, int64_t vocabulary, int threads) {
    parallel_for(rows, threads, [&](int64_t row) {
        loss_row(logits + row * vocabulary, vocabulary, targets[row], z_weight, want_gradient, nats + row, penalty + row);
    });
}

}  // namespace
}  // namespace seqloom

#define SEQLOOM_CROSS_ENTROPY(T, NAME)                                                                                 \
    extern "C" void seqloom_cross_entropy_##NAME(T* logits, const int64_t* targets, float z_weight,                    \
                                                 int32_t want_gradient, float* nats, float* penalty, int64_t rows,     \
                                                 int64_t vocabulary, int32_t threads) {                                \
        seqloom::loss_rows(logits, targets, z_weight, want_gradient, nats, penalty, rows, vocabulary, threads);        \
    }

SEQLOOM_CROSS_ENTROPY(float, f32)
SEQLOOM_CROSS_ENTROPY(seqloom::bf16, bf16)
