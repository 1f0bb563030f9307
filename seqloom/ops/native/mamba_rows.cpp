// A Mamba-2 mixer over rows of an engine, whose windows and states are kept in place: what mixes tokens, and the whole
// layer in one call.
//
// A guess is a token that may turn out wrong. The stored state stops before the guesses of a call; their raw inputs are
// stored instead, and the next call begins with those that were kept, in the same pass over the state. The arithmetic is
// that of the single ops, so an answer has the same bits whether and how its tokens were guessed.
#include "narrow_states.h"
#include "ssd_rows.h"
#include "step.h"

namespace seqloom {
namespace {

constexpr int64_t most_taps = 16;

// What is remembered of all rows; `Slots` in mamba_rows.py has the same fields.
struct Slots {
    void* window;        // [rows, taps - 1 + ahead, channels] inputs of the convolution: up to the stored state, then guesses
    float* guesses;      // [rows, ahead, heads] raw step sizes
    int64_t* pending;    // [rows] guesses that were kept, and that the stored state has not met
    int64_t* positions;  // [rows] tokens that the stored state has met
    void* codes;
    float* scales;
    uint64_t key;
    int64_t heads, head_width, groups, state_width, taps, ahead;
    int32_t format;

    int64_t inner() const { return heads * head_width; }
    int64_t shared() const { return groups * state_width; }
    int64_t channels() const { return inner() + 2 * shared(); }
    int64_t reach() const { return taps - 1; }
};

// The parameters of what mixes tokens; `Mixing` in mamba_rows.py has the same fields.
struct Mixing {
    const void *taps, *bias;
    const float *dt_bias, *rates, *skip;
    int32_t narrow;  // taps and bias are in BF16
};

// The projections of new tokens of some rows of the slots: [row, token, ...], tokens `apart` numbers apart.
template <class E>
struct Fresh {
    const E *xbc, *dt;
    int64_t xbc_apart, dt_apart;
    int64_t first, rows, tokens;
    bool guessed;  // all tokens but the first
};

// Taps and bias of `count` channels from `first` on, [taps + 1, count] in FP32.
template <class V>
void spread(const void* weight, const void* bias, int64_t first, int64_t count, int64_t taps, float* to) {
    const V *from = static_cast<const V*>(weight) + first * taps, *last = static_cast<const V*>(bias) + first;
    for (int64_t c = 0; c < count; ++c)
        for (int64_t k = 0; k < taps; ++k) to[k * count + c] = gemm_parts::widen(from[c * taps + k]);
    for (int64_t c = 0; c < count; ++c) to[taps * count + c] = gemm_parts::widen(last[c]);
}

template <class E>
class Rows {
public:
    Rows(const Slots& slots, const Mixing& weights, const Fresh<E>& fresh, int threads)
        : s(slots), w(weights), f(fresh), threads_(threads), most_(slots.ahead + fresh.tokens) {}

    // y [row, token, inner] of the new tokens; the slots go on to the state after those that are not guesses.
    void mix(E* y) {
        const int64_t channels = s.channels(), inner = s.inner(), shared = s.shared();
        scan::Plan* plans = room<scan::Plan>(15, f.rows);
        for (int64_t r = 0; r < f.rows; ++r) {
            const int64_t silent = s.pending[f.first + r];
            plans[r] = {silent, silent + f.tokens, silent + (f.guessed ? 1 : f.tokens)};
        }
        E* mixed = room<E>(10, f.rows * most_ * channels);
        float* steps = room<float>(11, f.rows * most_ * s.heads);
        convolve(plans, mixed);
        gather_steps(plans, steps);
        const int64_t row = most_ * channels;
        const int64_t sizes[] = {f.rows, f.tokens, s.heads, s.head_width, s.groups, s.state_width, 0,
                                 row, channels, s.head_width, row, channels, s.state_width, row, channels, s.state_width,
                                 most_ * s.heads, s.heads, 1};
        const scan::Inputs<E> in(sizes, mixed, mixed + inner, mixed + inner + shared, steps, w.dt_bias, w.rates, w.skip,
                                 nullptr, nullptr);
        scan::scan_rows(in, plans, states(), y, threads_);
        for (int64_t r = 0; r < f.rows; ++r) remember(plans[r], r, steps + r * most_ * s.heads);
    }

private:
    E* window(int64_t r) const {
        return static_cast<E*>(s.window) + (f.first + r) * (s.reach() + s.ahead) * s.channels();
    }

    // The raw input of token `t` of a row, counted from the first that its state has not met.
    const E* input(int64_t r, int64_t t, int64_t silent) const {
        return t < silent ? window(r) + (s.reach() + t) * s.channels()
                          : f.xbc + (r * f.tokens + t - silent) * f.xbc_apart;
    }

    void convolve(const scan::Plan* plans, E* mixed) const {
        constexpr int64_t together = 64, wide = 512;  // tokens and channels of a task, of all rows
        const int64_t channels = s.channels(), strips = (channels + wide - 1) / wide;
        parallel_for((most_ + together - 1) / together * strips, threads_, [&](int64_t task) {
            const int64_t first = task / strips * together, from = task % strips * wide;
            const int64_t count = std::min(wide, channels - from);
            float* weights = room<float>(12, (s.taps + 1) * count);
            (w.narrow ? spread<bf16> : spread<float>)(w.taps, w.bias, from, count, s.taps, weights);
            for (int64_t r = 0; r < f.rows; ++r)
                for (int64_t t = first; t < std::min(first + together, plans[r].tokens); ++t) {
                    const E* inputs[most_taps];
                    for (int64_t k = 0; k < s.taps; ++k)
                        inputs[k] = input(r, t - s.reach() + k, plans[r].silent) + from;
                    E* to = mixed + (r * most_ + t) * channels + from;
                    each_vector(count, [&](int64_t c, auto lanes) {
                        vf total = load(weights + s.taps * count + c, lanes);
                        for (int64_t k = 0; k < s.taps; ++k)
                            total = fma(load(inputs[k] + c, lanes), load(weights + k * count + c, lanes), total);
                        store(to + c, total * sigmoid(total), lanes);
                    });
                }
        });
    }

    void gather_steps(const scan::Plan* plans, float* steps) const {
        for (int64_t r = 0; r < f.rows; ++r) {
            float* to = steps + r * most_ * s.heads;
            const float* kept = s.guesses + (f.first + r) * s.ahead * s.heads;
            std::copy(kept, kept + plans[r].silent * s.heads, to);
            to += plans[r].silent * s.heads;
            for (int64_t t = 0; t < f.tokens; ++t, to += s.heads)
                convert(f.dt + (r * f.tokens + t) * f.dt_apart, s.heads, to);
        }
    }

    scan::States states() const {
        const int64_t numbers = f.first * s.inner(), blocks = scan::scale_blocks(s.state_width);
        const int64_t bytes = s.format == scan::kFp32 ? 4 : s.format <= scan::kFp16Stochastic ? 2 : 1;
        return {static_cast<char*>(s.codes) + numbers * s.state_width * bytes,
                s.scales ? s.scales + numbers * blocks : nullptr, s.positions + f.first, s.key, s.format};
    }

    // Inputs up to the stored state, then guesses: they move towards the front, so nothing is overwritten before it moved.
    void remember(const scan::Plan& plan, int64_t r, const float* steps) const {
        const int64_t channels = s.channels(), guesses = plan.tokens - plan.kept;
        for (int64_t i = 0; i < s.reach() + guesses; ++i) {
            E* to = window(r) + i * channels;
            const E* from = input(r, plan.kept - s.reach() + i, plan.silent);
            if (from != to) std::memcpy(static_cast<void*>(to), from, channels * sizeof(E));
        }
        std::copy_n(steps + plan.kept * s.heads, guesses * s.heads, s.guesses + (f.first + r) * s.ahead * s.heads);
        s.positions[f.first + r] += plan.kept;
        s.pending[f.first + r] = 0;
    }

    const Slots& s;
    const Mixing& w;
    const Fresh<E>& f;
    int threads_;
    int64_t most_;  // tokens of a row
};

// The whole layer: y = x + mixer(norm(x)).
template <class E>
void layer(const Layer<E>& a, const Slots& s, const Mixing& w, const Matrix* matrices, const float* gated_gain,
           int64_t first, int64_t batch, bool guessed) {
    using K = Kernels<E>;
    const int64_t rows = a.rows, inner = s.inner(), channels = s.channels(), all = inner + channels + s.heads;
    const int64_t widest = std::max(a.width, inner);
    E *normed = room<E>(8, rows * widest), *projected = room<E>(9, rows * all), *scanned = room<E>(13, rows * widest);
    float* inverse = room<float>(14, rows * (s.groups + 1));
    a.norm(normed, inverse);
    a.product(normed, matrices[0], projected, all, a.width);  // z, xbc and dt side by side
    const Fresh<E> fresh{projected + inner, projected + inner + channels, all, all, first, batch, rows / batch, guessed};
    Rows<E>(s, w, fresh, a.threads).mix(scanned);
    E *gated = normed, *mixed = scanned;
    K::gated_norm(scanned, inner, projected, all, gated_gain, a.eps, gated, inverse, rows, s.groups, inner / s.groups,
                  a.threads);
    a.product(gated, matrices[1], mixed, a.width, inner);
    a.add_input(mixed);
}

}  // namespace
}  // namespace seqloom

#define SEQLOOM_MAMBA_ROWS(E, NAME)                                                                                    \
    extern "C" void seqloom_mamba_mix_##NAME(const seqloom::Slots* slots, const seqloom::Mixing* weights, const E* xbc, \
                                             int64_t xbc_apart, const E* dt, int64_t dt_apart, E* y, int64_t first,    \
                                             int64_t rows, int64_t tokens, int32_t guessed, int32_t threads) {         \
        const seqloom::Fresh<E> fresh{xbc, dt, xbc_apart, dt_apart, first, rows, tokens, guessed != 0};                \
        seqloom::Rows<E>(*slots, *weights, fresh, threads).mix(y);                                                     \
    }                                                                                                                  \
    extern "C" void seqloom_mamba_rows_##NAME(                                                                         \
        const E* x, E* y, int64_t tokens, int64_t width, const float* gain, float eps, const seqloom::Matrix* matrices, \
        const seqloom::Slots* slots, const seqloom::Mixing* weights, const float* gated_gain, int64_t first,           \
        int64_t rows, int32_t guessed, int32_t threads) {                                                              \
        seqloom::layer<E>({tokens, width, x, y, gain, eps, threads}, *slots, *weights, matrices, gated_gain, first,    \
                          rows, guessed != 0);                                                                         \
    }

SEQLOOM_MAMBA_ROWS(float, f32)
SEQLOOM_MAMBA_ROWS(seqloom::bf16, bf16)
