// What the fused layers of generation share: the kernels of the single ops by element type, what every layer has, and
// memory for what lies between the kernels.
#pragma once

#include "lanes.h"
#include "matrix.h"
#include "threads.h"

using seqloom::bf16;

#define SEQLOOM_KERNELS_OF(E, NAME)                                                                                     \
    extern "C" void seqloom_rms_norm_forward_##NAME(const E*, int64_t, const float*, float, E*, float*, int64_t,       \
                                                    int64_t, int32_t);                                                 \
    extern "C" void seqloom_gated_norm_forward_##NAME##_##NAME(const E*, int64_t, const E*, int64_t, const float*,     \
                                                               float, E*, float*, int64_t, int64_t, int64_t, int32_t); \
    extern "C" void seqloom_squared_relu_forward_##NAME(const E*, E*, int64_t, int32_t);                               \
    extern "C" void seqloom_causal_conv_forward_##NAME(const E*, int64_t, int64_t, const void*, const void*, int32_t,  \
                                                       const E*, const int32_t*, E*, E*, int64_t, int64_t, int64_t,    \
                                                       int32_t, int32_t);                                              \
    extern "C" void seqloom_ssd_step_##NAME(const int64_t*, const E*, const E*, const E*, const float*, const float*,  \
                                            const float*, const float*, const float*, const int32_t*, E*, float*,      \
                                            int32_t);                                                                  \
    extern "C" void seqloom_attention_##NAME(const void*, const void*, const void*, void*, const int64_t*, int64_t,    \
                                             int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t,   \
                                             int64_t, int64_t, float, int32_t, int32_t);                               \
    extern "C" void seqloom_matvec_##NAME(const E*, const seqloom::Matrix*, E*, int64_t, int64_t, int64_t, int64_t,   \
                                          int32_t);                                                                    \
    template <>                                                                                                        \
    struct Kernels<E> {                                                                                                \
        static constexpr auto rms_norm = seqloom_rms_norm_forward_##NAME;                                              \
        static constexpr auto gated_norm = seqloom_gated_norm_forward_##NAME##_##NAME;                                 \
        static constexpr auto squared_relu = seqloom_squared_relu_forward_##NAME;                                      \
        static constexpr auto causal_conv = seqloom_causal_conv_forward_##NAME;                                        \
        static constexpr auto ssd_step = seqloom_ssd_step_##NAME;                                                      \
        static constexpr auto attention = seqloom_attention_##NAME;                                                    \
        static constexpr auto matvec = seqloom_matvec_##NAME;                                                          \
    };

namespace seqloom {

template <class E>
struct Kernels;
SEQLOOM_KERNELS_OF(float, f32)
SEQLOOM_KERNELS_OF(bf16, bf16)

// What every layer has: `rows` tokens of `width` numbers and a norm in front.
template <class E>
struct Layer {
    int64_t rows, width;
    const E* x;
    E* y;
    const float* gain;
    float eps;
    int32_t threads;

    // to [rows, n] = from [rows, k] w [n, k]^T
    void product(const E* from, const Matrix& w, E* to, int64_t n, int64_t k) const {
        Kernels<E>::matvec(from, &w, to, rows, n, k, k, threads);
    }
    void norm(E* to, float* inverse) const {
        Kernels<E>::rms_norm(x, width, gain, eps, to, inverse, rows, width, threads);
    }
    void add_input(const E* mixed) const {
        each_vector(rows * width, [&](int64_t i, auto lanes) {
            store(y + i, load(x + i, lanes) + load(mixed + i, lanes), lanes);
        });
    }
};

// x [count, width] = rows of a table, of V, for these tokens; one that could not be chosen is taken for the first.
template <class V, class E>
void embed(const void* table, const int64_t* tokens, int64_t count, int64_t width, E* x) {
    for (int64_t t = 0; t < count; ++t)
        convert(static_cast<const V*>(table) + (tokens[t] < 0 ? 0 : tokens[t]) * width, width, x + t * width);
}

// Memory for what lies between the kernels, in slots that none of them uses.
template <class T>
T* room(int slot, int64_t count) {
    return static_cast<T*>(scratch(count * sizeof(T), slot));
}

}  // namespace seqloom
