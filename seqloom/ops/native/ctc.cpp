// Connectionist temporal classification, costs and then gradients, an utterance a task; see ctc.py.
//
// The 2 L + 1 states lie as L + 1 blanks and L labels, so that a frame is swept in whole vectors: blank i stands before
// label i. What may enter label i from before it is what may enter blank i, or that blank alone where the label repeats
// its neighbour, so two sums of two logarithms take a frame two states on. Every frame is measured from the greatest
// state of the one before, and the distances add up in double: the rounding does not grow with the cost.
#include <algorithm>

#include "lanes.h"
#include "threads.h"

namespace seqloom {
namespace {

constexpr float never = -1e30f;  // ln 0, with which one can calculate
constexpr int slot_states = 4, slot_labels = 5, slot_row = 6;

float wide(float x) { return x; }

float wide(bf16 x) {
    const uint32_t bits = uint32_t{x.bits} << 16;
    float out;
    std::memcpy(&out, &bits, sizeof out);
    return out;
}

int64_t up(int64_t n) { return (n + W - 1) / W * W; }

// ln(exp(a) + exp(b)). What is far below a rounding is not made smaller still: numbers too small to be normal are slow.
// NaN stays.
[[gnu::always_inline]] inline vf add(vf a, vf b) {
    return max(a, b) + log1p_near(exp(max(broadcast(-40.0f), -abs(a - b))));
}

// exp(x) for x <= 0 or, for the same reason, a little above.
[[gnu::always_inline]] inline vf share(vf x) { return exp(max(broadcast(-87.0f), x)); }

template <class T>
struct Batch {
    const T* logits;
    int64_t row, frame;  // strides
    const int64_t *lengths, *targets, *target_lengths;
    int64_t rows, frames, classes, labels, blank;
    int64_t kept;  // numbers of a frame, of states that are kept
};

template <class T>
struct Utterance {
    const T* logits;
    int64_t frame, frames, classes, count, blank;
    const int64_t* targets;
    float* places;  // of labels, in whole vectors: ln y_t, posteriors, whether the blank before may be skipped

    Utterance(const Batch<T>& batch, int64_t row)
        : logits(batch.logits + row * batch.row),
          frame(batch.frame),
          frames(batch.lengths[row]),
          classes(batch.classes),
          count(batch.target_lengths[row]),
          blank(batch.blank),
          targets(batch.targets + row * batch.labels),
          places(static_cast<float*>(scratch((3 * up(count + 1) + W) * sizeof(float), slot_labels))) {
        std::fill_n(places, 3 * states() + W, 0.0f);
        std::fill_n(label(), states(), never);
        for (int64_t i = 1; i < count; ++i) skip()[i] = targets[i] != targets[i - 1];
    }

    int64_t states() const { return up(count + 1); }  // of each of the two kinds
    float* label() const { return places; }
    float* posterior() const { return places + states(); }
    float* skip() const { return places + 2 * states(); }  // a vector longer

    bool possible() const {
        int64_t needed = count;
        for (int64_t i = 1; i < count; ++i) needed += targets[i] == targets[i - 1];
        return frames > 0 && needed <= frames;
    }

    // Probabilities of a frame: of all labels, and of the blank.
    float read(int64_t t, const float* norm) const {
        const T* x = logits + t * frame;
        auto at = [&](int64_t k) {
            const float y = (wide(x[k]) - norm[0]) - norm[1];
            return y < never ? never : y;
        };
        for (int64_t i = 0; i < count; ++i) label()[i] = at(targets[i]);
        return at(blank);
    }
};

// The greatest logit and ln Σ exp(x - greatest).
template <class T>
void normalise(const T* x, int64_t n, float* norm) {
    const int64_t whole = n / W * W, rest = n - whole;
    const vi there = first_lanes(rest);
    vf most = rest ? (there ? load(x + whole, rest) : broadcast(-INFINITY)) : broadcast(-INFINITY);
    for (int64_t i = 0; i < whole; i += W) most = max(most, load(x + i));
    const float greatest = max(most);
    float total = sum_of(whole, [&](int64_t i, auto lanes) { return exp(load(x + i, lanes) - greatest); });
    if (rest) total += sum(there ? exp(load(x + whole, rest) - greatest) : vf{});
    norm[0] = greatest, norm[1] = std::log(total);
}

// States of a frame as they are kept: blanks, a vector of `never` before the first label, labels.
struct Frame {
    float *blanks, *labels;

    Frame(float* at, int64_t states) : blanks(at), labels(at + states + W) {}

    void clear(int64_t states) { std::fill_n(blanks, 2 * states + W, never); }
};

// A frame from the one before it, both shifted; returns the greatest state.
float advance(const Frame& from, const Frame& to, const float* label, const float* skip, float blank, float shift,
              int64_t states) {
    std::fill_n(to.labels - W, W, never);
    vf most = broadcast(never);
    for (int64_t i = 0; i < states; i += W) {
        const vf stay = load(from.blanks + i), both = add(stay, load(from.labels + i - 1));
        const vf b = both + (blank - shift);
        const vf l = add(load(from.labels + i), load(skip + i) > 0.5f ? both : stay) + (load(label + i) - shift);
        store(to.blanks + i, b);
        store(to.labels + i, l);
        most = max(most, max(b, l));
    }
    return max(most);
}

// Nats of an utterance. Norms [frames, 2] and, if there is room for them, the states of all frames are kept.
template <class T>
float cost(const Utterance<T>& one, float* norms, float* kept, int64_t stride) {
    const int64_t states = one.states(), size = 2 * states + W;
    float* two = kept ? nullptr : static_cast<float*>(scratch(2 * size * sizeof(float), slot_states));
    auto frame = [&](int64_t t) { return Frame(kept ? kept + t * stride : two + t % 2 * size, states); };
    double total = 0;
    float shift = 0;
    for (int64_t t = 0; t < one.frames; ++t) {
        normalise(one.logits + t * one.frame, one.classes, norms + 2 * t);
        const float blank = one.read(t, norms + 2 * t);
        Frame now = frame(t);
        if (t > 0) {
            total += shift;
            shift = advance(frame(t - 1), now, one.label(), one.skip(), blank, shift, states);
        } else {
            now.clear(states);
            now.blanks[0] = blank;
            if (one.count) now.labels[0] = one.label()[0];
            shift = std::max(now.blanks[0], now.labels[0]);
        }
    }
    const Frame last = frame(one.frames - 1);
    const vf ends = add(broadcast(last.blanks[one.count]), broadcast(last.labels[one.count - 1]));
    const double nats = -(total + ends[0]);
    return nats > -0.1 * never ? INFINITY : float(nats);
}

// What comes after each state of a frame, from the states of the frame that follows, in their place.
void retreat(float* blanks, float* labels, float* entering, const float* skip, int64_t states) {
    for (int64_t i = 0; i < states; i += W) store(entering + i, add(load(blanks + i), load(labels + i)));
    for (int64_t i = 0; i < states; i += W) {
        const vf next = load(skip + i + 1) > 0.5f ? load(entering + i + 1) : load(blanks + i + 1);
        store(labels + i, add(load(labels + i), next));
    }
    std::copy_n(entering, states, blanks);
}

// The gradient of a frame, y - posterior, times `factor`; posteriors are measured with `total` as one.
template <class T>
void gradient(const Utterance<T>& one, int64_t t, const float* norm, float blank, float total, float factor, T* dx) {
    const T* x = one.logits + t * one.frame;
    float* row;
    if constexpr (sizeof(T) == sizeof(float))
        row = dx;
    else
        row = static_cast<float*>(scratch(one.classes * sizeof(float), slot_row));
    each_vector(one.classes, [&](int64_t k, auto lanes) {
        store(row + k, exp((load(x + k, lanes) - norm[0]) - norm[1]) * factor, lanes);
    });
    const float unit = factor / total;
    row[one.blank] -= blank * unit;
    for (int64_t i = 0; i < one.count; ++i) row[one.targets[i]] -= one.posterior()[i] * unit;
    if constexpr (sizeof(T) != sizeof(float))
        convert(row, one.classes, dx);
}

template <class T>
void backward(const Utterance<T>& one, const float* norms, float* kept, int64_t stride, float factor, T* dx) {
    const int64_t states = one.states(), size = states + W;
    float* blanks = static_cast<float*>(scratch(3 * size * sizeof(float), slot_states));
    float *labels = blanks + size, *entering = labels + size;
    std::fill_n(blanks, 3 * size, never);
    for (int64_t t = one.frames - 1; t >= 0; --t) {
        if (t + 1 < one.frames) {
            retreat(blanks, labels, entering, one.skip(), states);
        } else {
            blanks[one.count] = 0;
            if (one.count) labels[one.count - 1] = 0;
        }
        const float blank = one.read(t, norms + 2 * t);
        const Frame alpha(kept + t * stride, states);
        vf most = broadcast(2 * never), rest = broadcast(never);
        for (int64_t i = 0; i < states; i += W) {
            const vf b = load(blanks + i), l = load(labels + i);
            most = max(most, max(load(alpha.blanks + i) + b, load(alpha.labels + i) + l));
            rest = max(rest, max(b, l));
        }
        const float top = max(most), shift = max(rest);
        vf on_blanks = {}, on_labels = {};
        for (int64_t i = 0; i < states; i += W) {
            const vf b = load(blanks + i), l = load(labels + i);
            const vf posterior = share(load(alpha.labels + i) + l - top);
            on_blanks += share(load(alpha.blanks + i) + b - top);
            on_labels += posterior;
            store(one.posterior() + i, posterior);
            store(blanks + i, b + (blank - shift));
            store(labels + i, l + (load(one.label() + i) - shift));
        }
        const float sum_blanks = sum(on_blanks);
        gradient(one, t, norms + 2 * t, sum_blanks, sum_blanks + sum(on_labels), factor, dx + t * one.classes);
    }
}

template <class T>
void costs(const Batch<T>& batch, float* nats, float* norms, float* kept, int threads) {
    parallel_for(batch.rows, threads, [&](int64_t row) {
        const Utterance<T> one(batch, row);
        float* states = kept ? kept + row * batch.frames * batch.kept : nullptr;
        nats[row] = one.possible() ? cost(one, norms + 2 * row * batch.frames, states, batch.kept) : 0.0f;
    });
}

template <class T>
void gradients(const Batch<T>& batch, const float* dnats, const float* norms, float* kept, T* dx, int threads) {
    parallel_for(batch.rows, threads, [&](int64_t row) {
        const Utterance<T> one(batch, row);
        T* to = dx + row * batch.frames * batch.classes;
        const int64_t frames = one.possible() ? one.frames : 0;
        if (frames)
            backward(one, norms + 2 * row * batch.frames, kept + row * batch.frames * batch.kept, batch.kept,
                     dnats[row], to);
        std::memset(static_cast<void*>(to + frames * batch.classes), 0,
                    size_t((batch.frames - frames) * batch.classes) * sizeof(T));
    });
}

}  // namespace
}  // namespace seqloom

#define SEQLOOM_CTC_BATCH(T)                                                                                           \
    const T *logits, int64_t row, int64_t frame, const int64_t *lengths, const int64_t *targets,                       \
        const int64_t *target_lengths, int64_t rows, int64_t frames, int64_t classes, int64_t labels, int64_t blank,   \
        int64_t kept

#define SEQLOOM_CTC(T, NAME)                                                                                           \
    extern "C" void seqloom_ctc_forward_##NAME(SEQLOOM_CTC_BATCH(T), float* nats, float* norms, float* states,         \
                                               int32_t threads) {                                                      \
        seqloom::costs<T>({logits, row, frame, lengths, targets, target_lengths, rows, frames, classes, labels, blank, \
                           kept},                                                                                      \
                          nats, norms, states, threads);                                                               \
    }                                                                                                                  \
    extern "C" void seqloom_ctc_backward_##NAME(SEQLOOM_CTC_BATCH(T), const float* dnats, const float* norms,          \
                                                float* states, T* dx, int32_t threads) {                               \
        seqloom::gradients<T>({logits, row, frame, lengths, targets, target_lengths, rows, frames, classes, labels,    \
                               blank, kept},                                                                           \
                              dnats, norms, states, dx, threads);                                                      \
    }

SEQLOOM_CTC(float, f32)
SEQLOOM_CTC(seqloom::bf16, bf16)
