// Depthwise causal convolution with SiLU, forward and backward; see causal_conv.py.
//
// A task is a stretch of tokens of one row, taken token by token with all channels of a token in one go, so that memory
// is read in long lines. The backward pass walks from the last token to the first: it computes the pre-activation anew,
// keeps the gradients of as many tokens as there are taps, and so finishes one token's input gradient at a time.
#include <algorithm>

#include "lanes.h"
#include "threads.h"

namespace seqloom {
namespace {

constexpr int most_taps = 16;
constexpr int64_t forward_tokens = 64;    // of a task
constexpr int64_t backward_tokens = 128;  // at least
constexpr int64_t most_partials = 64;     // tasks of the backward pass, each with sums of its own
constexpr int slot_weights = 4, slot_sums = 5, slot_recent = 6;

float wide(float x) { return x; }

float wide(bf16 x) {
    uint32_t bits = uint32_t{x.bits} << 16;
    float result;
    std::memcpy(&result, &bits, sizeof result);
    return result;
}

template <class T>
struct Inputs {
    const T* x;
    int64_t x_row, x_token;
    const T* window;         // [B, K - 1, C], or null for zeros
    const int32_t* numbers;  // [B, K - 1 + T] documents, or null
    int64_t rows, length, channels;
    int taps;

    int reach() const { return taps - 1; }

    const T* token(int64_t row, int64_t t) const {
        if (t >= 0) return x + row * x_row + t * x_token;
        return window ? window + (row * reach() + reach() + t) * channels : nullptr;
    }

    int32_t number(int64_t row, int64_t t) const { return numbers ? numbers[row * (reach() + length) + reach() + t] : 0; }
};

// FP32 weights with the channels of a tap side by side.
struct Weights {
    const float* taps;  // [K, C]
    const float* bias;
};

template <class V>
void spread(const V* weight, const V* bias, int64_t channels, int taps, float* out) {
    for (int64_t c = 0; c < channels; ++c)
        for (int k = 0; k < taps; ++k) out[k * channels + c] = wide(weight[c * taps + k]);
    for (int64_t c = 0; c < channels; ++c) out[taps * channels + c] = wide(bias[c]);
}

Weights spread(const void* weight, const void* bias, bool narrow, int64_t channels, int taps) {
    float* out = static_cast<float*>(scratch((taps + 1) * channels * sizeof(float), slot_weights));
    if (narrow)
        spread(static_cast<const bf16*>(weight), static_cast<const bf16*>(bias), channels, taps, out);
    else
        spread(static_cast<const float*>(weight), static_cast<const float*>(bias), channels, taps, out);
    return {out, out + taps * channels};
}

// The taps of one token that meet an input of its document.
template <class T>
struct Live {
    int count = 0;
    int tap[most_taps];
    const T* input[most_taps];
    const float* weight[most_taps];

    Live(const Inputs<T>& in, const float* weights, int64_t row, int64_t t) {
        for (int k = 0; k < in.taps; ++k) {
            const int64_t place = t - in.reach() + k;
            const T* found = in.token(row, place);
            if (!found || in.number(row, place) != in.number(row, t)) continue;
            tap[count] = k;
            input[count] = found;
            weight[count++] = weights + k * in.channels;
        }
    }
};

template <int N, class T, class Lanes>
[[gnu::always_inline]] inline vf weighted_sum(const Live<T>& live, const float* bias, int64_t c, Lanes lanes) {
    vf total = load(bias + c, lanes);
    const int count = N ? N : live.count;
#pragma GCC unroll 4
    for (int i = 0; i < count; ++i)
        total = fma(load(live.input[i] + c, lanes), load(live.weight[i] + c, lanes), total);
    return total;
}

template <int N, class T>
void forward_token(const Live<T>& live, const float* bias, int64_t channels, T* y) {
    each_vector(channels, [&](int64_t c, auto lanes) {
        const vf total = weighted_sum<N>(live, bias, c, lanes);
        store(y + c, total * sigmoid(total), lanes);
    });
}

template <class T>
void forward(const Inputs<T>& in, Weights weights, T* y, int threads) {
    const int64_t blocks = (in.length + forward_tokens - 1) / forward_tokens;
    parallel_for(in.rows * blocks, threads, [&](int64_t task) {
        const int64_t row = task / blocks, first = task % blocks * forward_tokens;
        for (int64_t t = first; t < std::min(first + forward_tokens, in.length); ++t) {
            T* out = y + (row * in.length + t) * in.channels;
            if (in.number(row, t) < 0) {
                std::memset(static_cast<void*>(out), 0, in.channels * sizeof(T));
                continue;
            }
            const Live<T> live(in, weights.taps, row, t);
            if (live.count == 4)
                forward_token<4>(live, weights.bias, in.channels, out);
            else
                forward_token<0>(live, weights.bias, in.channels, out);
        }
    });
}

// Gradients of the pre-activations that reach one input, with the weights they came through.
struct Reached {
    int count = 0;
    const float* dsum[most_taps];
    const float* weight[most_taps];
};

// The gradient by the pre-activation of a token, which is kept, and by taps and bias, which is added.
template <int N, class T>
void backward_token(const Live<T>& live, const float* bias, int64_t channels, const T* dy, float* dsum, float* sums,
                    int taps) {
    float* dtap[most_taps];
    for (int i = 0; i < live.count; ++i) dtap[i] = sums + live.tap[i] * channels;
    float* dbias = sums + taps * channels;
    each_vector(channels, [&](int64_t c, auto lanes) {
        const vf total = weighted_sum<N>(live, bias, c, lanes), gate = sigmoid(total);
        const vf slope = gate * fma(total, 1.0f - gate, broadcast(1.0f));
        const vf d = load(dy + c, lanes) * slope;
        store(dsum + c, d, lanes);
        store(dbias + c, load(dbias + c, lanes) + d, lanes);
        const int count = N ? N : live.count;
#pragma GCC unroll 4
        for (int i = 0; i < count; ++i)
            store(dtap[i] + c, fma(d, load(live.input[i] + c, lanes), load(dtap[i] + c, lanes)), lanes);
    });
}

template <int N, class T>
void input_gradient(const Reached& reached, int64_t channels, T* dx) {
    each_vector(channels, [&](int64_t c, auto lanes) {
        vf total = vf{};
        const int count = N ? N : reached.count;
#pragma GCC unroll 4
        for (int i = 0; i < count; ++i)
            total = fma(load(reached.dsum[i] + c, lanes), load(reached.weight[i] + c, lanes), total);
        store(dx + c, total, lanes);
    });
}

template <class T>
struct Gradients {
    const T* dy;
    int64_t dy_row, dy_token;
    T* dx;
    T* dwindow;
};

// Tokens [first, last) of a row. What follows them is visited only for what it sends back into them.
template <class T>
void backward_stretch(const Inputs<T>& in, Weights weights, const Gradients<T>& out, int64_t row, int64_t first,
                      int64_t last, float* sums) {
    const int64_t channels = in.channels, sums_size = (in.taps + 1) * channels;
    float* recent = static_cast<float*>(scratch((in.taps * channels + sums_size) * sizeof(float), slot_recent));
    float* unused = recent + in.taps * channels;  // sums that another stretch makes
    std::fill_n(sums, sums_size, 0.0f);
    std::fill_n(unused, sums_size, 0.0f);
    const int64_t lowest = first == 0 && out.dwindow ? -in.reach() : first;
    for (int64_t t = std::min(last + in.reach(), in.length) - 1; t >= lowest; --t) {
        const int32_t number = in.number(row, t);
        if (t >= 0 && number >= 0) {
            const Live<T> live(in, weights.taps, row, t);
            const T* dy = out.dy + row * out.dy_row + t * out.dy_token;
            float* dsum = recent + t % in.taps * channels;
            float* place = t < last && t >= first ? sums : unused;
            if (live.count == 4)
                backward_token<4>(live, weights.bias, channels, dy, dsum, place, in.taps);
            else
                backward_token<0>(live, weights.bias, channels, dy, dsum, place, in.taps);
        }
        if (t >= last) continue;
        Reached reached;
        for (int k = in.reach(); k >= 0; --k) {
            const int64_t place = t + in.reach() - k;
            if (place < 0 || place >= in.length || number < 0 || in.number(row, place) != number) continue;
            reached.dsum[reached.count] = recent + place % in.taps * channels;
            reached.weight[reached.count++] = weights.taps + k * channels;
        }
        T* dx = t >= 0 ? out.dx + (row * in.length + t) * channels
                       : out.dwindow + (row * in.reach() + in.reach() + t) * channels;
        if (reached.count == 4)
            input_gradient<4>(reached, channels, dx);
        else
            input_gradient<0>(reached, channels, dx);
    }
}

template <class T>
void backward(const Inputs<T>& in, Weights weights, const Gradients<T>& out, float* dweight, float* dbias, int threads) {
    const int64_t per_row = std::max<int64_t>(1, most_partials / in.rows);
    const int64_t stretch = std::max(backward_tokens, (in.length + per_row - 1) / per_row);
    const int64_t blocks = (in.length + stretch - 1) / stretch, tasks = in.rows * blocks;
    const int64_t channels = in.channels, sums_size = (in.taps + 1) * channels;
    float* partials = static_cast<float*>(scratch(tasks * sums_size * sizeof(float), slot_sums));
    parallel_for(tasks, threads, [&](int64_t task) {
        const int64_t first = task % blocks * stretch;
        backward_stretch(in, weights, out, task / blocks, first, std::min(first + stretch, in.length),
                         partials + task * sums_size);
    });
    for (int64_t task = 1; task < tasks; ++task)
        for (int64_t i = 0; i < sums_size; ++i) partials[i] += partials[task * sums_size + i];
    for (int64_t c = 0; c < channels; ++c) {
        for (int k = 0; k < in.taps; ++k) dweight[c * in.taps + k] = partials[k * channels + c];
        dbias[c] = partials[in.taps * channels + c];
    }
}

// What the next call must remember of a row that goes on: its last inputs.
template <class T>
void next_window(const Inputs<T>& in, T* next) {
    for (int64_t row = 0; row < in.rows; ++row)
        for (int64_t i = 0; i < in.reach(); ++i) {
            T* out = next + (row * in.reach() + i) * in.channels;
            if (const T* found = in.token(row, in.length - in.reach() + i))
                std::memcpy(static_cast<void*>(out), found, in.channels * sizeof(T));
            else
                std::memset(static_cast<void*>(out), 0, in.channels * sizeof(T));
        }
}

}  // namespace
}  // namespace seqloom

#define SEQLOOM_CAUSAL_CONV(T, NAME)                                                                                  \
    extern "C" void seqloom_causal_conv_forward_##NAME(                                                               \
        const T* x, int64_t x_row, int64_t x_token, const void* weight, const void* bias, int32_t narrow,             \
        const T* window, const int32_t* numbers, T* y, T* next, int64_t rows, int64_t length, int64_t channels,       \
        int32_t taps, int32_t threads) {                                                                              \
        const seqloom::Inputs<T> in{x, x_row, x_token, window, numbers, rows, length, channels, taps};                \
        seqloom::forward(in, seqloom::spread(weight, bias, narrow, channels, taps), y, threads);                      \
        if (next) seqloom::next_window(in, next);                                                                     \
    }                                                                                                                 \
    extern "C" void seqloom_causal_conv_backward_##NAME(                                                              \
        const T* x, int64_t x_row, int64_t x_token, const void* weight, const void* bias, int32_t narrow,             \
        const T* window, const int32_t* numbers, const T* dy, int64_t dy_row, int64_t dy_token, T* dx, T* dwindow,    \
        float* dweight, float* dbias, int64_t rows, int64_t length, int64_t channels, int32_t taps,                   \
        int32_t threads) {                                                                                            \
        const seqloom::Inputs<T> in{x, x_row, x_token, window, numbers, rows, length, channels, taps};                \
        seqloom::backward(in, seqloom::spread(weight, bias, narrow, channels, taps), {dy, dy_row, dy_token, dx, dwindow}, \
                          dweight, dbias, threads);                                                                   \
    }

SEQLOOM_CAUSAL_CONV(float, f32)
SEQLOOM_CAUSAL_CONV(seqloom::bf16, bf16)
