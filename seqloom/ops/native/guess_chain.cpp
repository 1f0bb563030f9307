// Guesses of the prediction block one after the other, in one call: each begins with the output and the token of the one
// before.
//
//     x = W [norm(embedding of the token); norm(hidden)];   hidden = norm(layers(x));   token = choice(head(hidden))
//
// A guess reads a few megabytes; called from outside for each, the ways there and back would take as long.
#include <algorithm>
#include <cmath>

#include "step.h"
#include "token_draw.h"

#define SEQLOOM_STACK_OF(E, NAME)                                                                                \
    extern "C" void seqloom_stack_step_##NAME(const E*, E*, E*, const void*, int64_t, const float*, float,       \
                                              const void*);                                                      \
    template <>                                                                                                  \
    struct seqloom::Stack<E> {                                                                                   \
        static constexpr auto step = seqloom_stack_step_##NAME;                                                  \
    };

namespace seqloom {

template <class E>
struct Stack;

}  // namespace seqloom

SEQLOOM_STACK_OF(float, f32)
SEQLOOM_STACK_OF(bf16, bf16)

namespace seqloom {
namespace {

constexpr int slot_numbers = 18, slot_scores = 19;  // that no layer uses

struct Norm {
    const float* gain;
    float eps;
};

// What is around the block's layers; `_Block` in guess_chain.py has the same fields, and `_Call` those of `Call`.
struct Block {
    const void* embeddings;  // [vocabulary, width]
    const Matrix *fusing, *head;
    const int64_t* tokens;  // that the rows of the head stand for, rising
    Norm token_norm, hidden_norm;
    int64_t width, vocabulary, choices;
    int32_t narrow;  // embeddings are in BF16
};

struct Call {
    const void* layers;
    int64_t count;  // of layers
    Norm last_norm;
    const void *first, *others;     // rows in the first pass, and in those after it, as stack_step.cpp is told
    int64_t* lengths;               // tokens that the block has seen of each row; grows as it goes on
    int64_t rows, known, places;    // known: positions of a row in the first pass; places: most guesses of a row
    const int64_t* true_tokens;     // [rows, known] after these positions
    const int64_t *counts, *wanted;  // of each row: positions that it really has; guesses
    const Race* races;              // how each row chooses
    const uint64_t* keys;           // [rows, places]
    int64_t* guesses;               // [places, rows]
    int32_t threads;
};

template <class E>
class Chain {
public:
    Chain(const Block& block, const Call& call) : b(block), c(call) {
        const int64_t some = c.rows * std::max<int64_t>(c.known, 1) * b.width;
        fused_ = room<E>(slot_numbers, 7 * some + c.rows * b.choices);
        x_ = fused_ + 2 * some;
        y_ = x_ + some;
        between_ = y_ + some;
        newest_ = between_ + 2 * some;
        logits_ = newest_ + some;
        scores_ = room<float>(slot_scores, b.choices + b.vocabulary);
        all_scores_ = scores_ + b.choices;
    }

    // ahead [row, width]: the block's output at the newest true position; kept as it is where there is none to follow.
    void run(const E* hidden, E* ahead) {
        const int64_t D = b.width;
        if (c.known) {
            pass(hidden, c.true_tokens, c.known, c.first);
            for (int64_t r = 0; r < c.rows; ++r) {
                if (const int64_t n = c.counts[r]) std::copy_n(y_ + (r * c.known + n - 1) * D, D, ahead + r * D);
                c.lengths[r] += c.counts[r];
            }
        }
        std::copy_n(ahead, c.rows * D, newest_);
        std::fill_n(all_scores_, b.vocabulary, -INFINITY);  // of tokens that the head has no row for
        int64_t* tokens = c.guesses;
        for (int64_t place = 0; place < c.places; ++place) {
            if (place) {
                pass(newest_, tokens, 1, c.others);
                std::copy_n(y_, c.rows * D, newest_);
                for (int64_t r = 0; r < c.rows; ++r) ++c.lengths[r];
                tokens += c.rows;
            }
            Kernels<E>::matvec(newest_, b.head, logits_, c.rows, b.choices, D, D, c.threads);
            for (int64_t r = 0; r < c.rows; ++r) tokens[r] = place < c.wanted[r] ? choice(r, place) : 0;
        }
    }

private:
    // y_ = the block's output for hidden states and the tokens after them, `length` of each row, from `lengths` on.
    void pass(const E* hidden, const int64_t* tokens, int64_t length, const void* rows) {
        const int64_t D = b.width, count = c.rows * length;
        float inverse;
        for (int64_t i = 0; i < count; ++i) {
            (b.narrow ? embed<bf16, E> : embed<float, E>)(b.embeddings, tokens + i, 1, D, x_);
            E* to = fused_ + i * 2 * D;
            Kernels<E>::rms_norm(x_, D, b.token_norm.gain, b.token_norm.eps, to, &inverse, 1, D, 1);
            Kernels<E>::rms_norm(hidden + i * D, D, b.hidden_norm.gain, b.hidden_norm.eps, to + D, &inverse, 1, D, 1);
        }
        Kernels<E>::matvec(fused_, b.fusing, x_, count, D, 2 * D, 2 * D, c.threads);
        Stack<E>::step(x_, y_, between_, c.layers, c.count, c.last_norm.gain, c.last_norm.eps, rows);
    }

    // The token of a row. A draw's noise is by token, so it is made over the whole vocabulary.
    int64_t choice(int64_t row, int64_t place) {
        convert(logits_ + row * b.choices, b.choices, scores_);
        const Race& race = c.races[row];
        if (race.sharpness == 0)
            return b.tokens[std::max<int64_t>(0, seqloom_token_choice(scores_, b.choices, &race, 0))];
        for (int64_t i = 0; i < b.choices; ++i) all_scores_[b.tokens[i]] = scores_[i];
        const uint64_t key = c.keys[row * c.places + place];
        return std::max<int64_t>(0, seqloom_token_choice(all_scores_, b.vocabulary, &race, key));  // -1: not finite
    }

    const Block& b;
    const Call& c;
    E *fused_, *x_, *y_, *between_, *newest_, *logits_;
    float *scores_, *all_scores_;
};

}  // namespace
}  // namespace seqloom

#define SEQLOOM_GUESS_CHAIN(E, NAME)                                                                        \
    extern "C" void seqloom_guess_chain_##NAME(const seqloom::Block* block, const seqloom::Call* call,      \
                                               const E* hidden, E* ahead) {                                 \
        seqloom::Chain<E>(*block, *call).run(hidden, ahead);                                                \
    }

SEQLOOM_GUESS_CHAIN(float, f32)
SEQLOOM_GUESS_CHAIN(bf16, bf16)
