// The scan token after token: for a few tokens, as a decoder takes them, and for many where each must be computed by the
// same operations whatever stands beside it.
//
// A few rows of the state meet some tokens, one after the other, before the next rows are read; so the state is read and
// written once for those tokens, and rows, B and C stay in the first cache.
#include "ssd_rows.h"

#include "narrow_states.h"

namespace seqloom::scan {
namespace {

constexpr int kStateRows = 4;              // at a time
constexpr int64_t kTokens = 16;            // at a time
constexpr int64_t kWorthThreads = 1 << 16;  // meetings of a token and a number of the state

// What the rows of a state share of some tokens.
struct Room {
    Matrix b, c, u, y;
    float *steps, *across;  // dt, and the decay from token to token
    bool* resets;           // a document begins
    Matrix rows;            // of the state
    uint32_t* noise;

    Room(Arena& arena, const Shape& shape)
        : b(arena.matrix(shape.tokens, shape.state)),
          c(arena.matrix(shape.tokens, shape.state)),
          u(arena.matrix(shape.tokens, shape.width)),
          y(arena.matrix(shape.tokens, shape.width)),
          steps(arena.take<float>(whole(shape.tokens))),
          across(arena.take<float>(whole(shape.tokens))),
          resets(arena.take<bool>(shape.tokens)),
          rows(arena.matrix(kStateRows, shape.state)),
          noise(arena.take<uint32_t>(Noise::words(kStateRows * shape.state))) {}
};

// `count` tokens of a head from `start` on.
template <class E>
void prepare(const Inputs<E>& in, int64_t row, int64_t head, int64_t start, int64_t count, const Room& room) {
    const Shape& shape = in.shape;
    const int64_t group = head / (shape.heads / shape.groups);
    const Steps& from = in.steps;
    const int32_t* documents = in.documents_of(row);
    copy(count, shape.state, in.b.at(row, start, group), in.b.token, room.b);
    copy(count, shape.state, in.c.at(row, start, group), in.c.token, room.c);
    for (int64_t i = 0; i < whole(count); ++i) room.steps[i] = i < count ? *from.raw.at(row, start + i, head) : 0;
    if (from.bias)
        for (int64_t i = 0; i < count; i += W) store(room.steps + i, softplus(load(room.steps + i) + from.bias[head]));
    for (int64_t i = 0; i < count; ++i) {
        const int64_t t = start + i;
        const bool padding = documents && documents[t] < 0;
        if (padding) room.steps[i] = 0;
        room.resets[i] = documents && t > 0 && documents[t] != documents[t - 1] && !padding;
    }
    for (int64_t i = 0; i < count; i += W) store(room.across + i, exp(load(room.steps + i) * from.rates[head]));
    for (int64_t i = 0; i < count; ++i) copy_row(shape.width, in.x.at(row, start + i, head), room.steps[i], room.u.row(i));
}

// R rows of the state meet one token: next = decay * old + u b^T, y = next c. Rows lie `apart` numbers apart.
template <int R, bool heard>
void meet(int64_t columns, const float* old, float* next, int64_t apart, float decay, const float* u, const float* b,
          const float* c, float* y) {
    const vf fade = broadcast(decay);
    vf read[R] = {}, factor[R];
    for (int r = 0; r < R; ++r) factor[r] = broadcast(u[r]);
    by_vectors(columns, [&](int64_t n, int64_t some) {
        const vf written = load(b + n), wanted = load(c + n);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
            const vf state = fma(load_some(old + r * apart + n, some), fade, written * factor[r]);
            store_some(next + r * apart + n, state, some);
            if (heard) read[r] = fma(state, wanted, read[r]);
        }
    });
    if (heard)
        for (int r = 0; r < R; ++r) y[r] = sum(read[r]);
}

// R rows from `p` on meet token `i` of the room; `old` null is a state of zeros.
template <int R>
void meet(const Room& room, int64_t columns, int64_t p, int64_t i, bool silent, const float* old, float* next,
          int64_t apart) {
    if (!old) {
        for (int r = 0; r < R; ++r) std::fill_n(next + r * apart, columns, 0.0f);
        old = next;
    }
    (silent ? meet<R, false> : meet<R, true>)(columns, old, next, apart, room.across[i], room.u.row(i) + p, room.b.row(i),
                                              room.c.row(i), room.y.row(i) + p);
}

// The states of a head as FP32: read from `before`, which may be null for zeros, and kept in `after`.
struct Wide {
    const float* before;
    float* after;

    template <int R>
    void meet_tokens(const Room& room, const Shape& shape, const Plan& plan, int64_t start, int64_t count, int64_t p) {
        const int64_t columns = shape.state, place = p * columns;
        if (start == 0)  // the next rows are on their way while these meet their tokens
            for (int64_t n = 0; n < R * columns; n += 64 / sizeof(float))
                __builtin_prefetch(after + place + R * columns + n, 1);
        for (int64_t i = 0; i < count; ++i) {
            const int64_t t = start + i;
            const bool guess = t >= plan.kept;
            const float* old = t == 0 ? (before ? before + place : nullptr) : t <= plan.kept ? after + place : room.rows.data;
            // A guess works on rows of its own, with gaps as in memory.
            meet<R>(room, columns, p, i, t < plan.silent, room.resets[i] ? nullptr : old,
                    guess ? room.rows.data : after + place, columns);
        }
    }
};

// The states of a head in codes, which are widened for some tokens and rounded after each.
template <StateFormat format>
struct Rounded {
    using C = Codec<format>;
    typename C::Code* codes;
    float* scales;
    uint64_t key;
    int64_t position;  // tokens met before these
    int64_t place;     // of the head's first number in its row

    template <int R>
    void meet_tokens(const Room& room, const Shape& shape, const Plan& plan, int64_t start, int64_t count, int64_t p) {
        const int64_t columns = shape.state, blocks = scale_blocks(columns), first = p * columns;
        auto scales_of = [&](int64_t r) { return C::scaled ? scales + (p + r) * blocks : nullptr; };
        for (int r = 0; r < R; ++r) widen_row<C>(columns, codes + first + r * columns, scales_of(r), room.rows.row(r));
        const int64_t last = std::min(plan.kept, start + count) - 1;  // of those whose state is kept
        for (int64_t i = 0; i < count; ++i) {
            const int64_t t = start + i;
            const bool keep = t == last;
            meet<R>(room, whole(columns), p, i, t < plan.silent, room.rows.data, room.rows.data, room.rows.apart);
            const uint16_t* noise = nullptr;
            if (C::stochastic) noise = Noise(key, position + t + 1).fill(place + first, R * columns, room.noise);
            for (int r = 0; r < R; ++r)
                round_row<C>(columns, room.rows.row(r), noise + r * columns,
                             keep ? codes + first + r * columns : nullptr, keep ? scales_of(r) : nullptr);
        }
    }
};

template <class E, class Head>
void advance(const Inputs<E>& in, const Plan& plan, int64_t row, int64_t head, Head states, E* y) {
    const Shape& shape = in.shape;
    Shape some = shape;  // of guesses all at once, since nobody keeps their states
    some.tokens = plan.kept < plan.tokens ? plan.tokens : std::min(plan.tokens, kTokens);
    const Room room = in_scratch<Room>(some);
    for (int64_t start = 0; start < plan.tokens; start += some.tokens) {
        const int64_t count = std::min(some.tokens, plan.tokens - start);
        prepare(in, row, head, start, count, room);
        int64_t p = 0;
        for (; p + kStateRows <= shape.width; p += kStateRows)
            states.template meet_tokens<kStateRows>(room, shape, plan, start, count, p);
        for (; p < shape.width; ++p) states.template meet_tokens<1>(room, shape, plan, start, count, p);
        for (int64_t i = std::max<int64_t>(0, plan.silent - start); i < count; ++i) {
            const int64_t answer = row * shape.tokens + start + i - plan.silent;
            add_skip(in, row, start + i, head, room.y.row(i), y + (answer * shape.heads + head) * shape.width);
        }
    }
}

template <class E, class Advance>
void each_head(const Inputs<E>& in, int threads, Advance&& one) {
    const Shape& shape = in.shape;
    const int64_t tasks = shape.rows * shape.heads;
    if (tasks * shape.width * shape.state * shape.tokens < kWorthThreads) threads = 1;
    parallel_for(tasks, threads, [&](int64_t task) { one(task / shape.heads, task % shape.heads); });
}

template <class E>
void step(const Inputs<E>& in, E* y, float* final_states, int threads) {
    const Plan plan{0, in.shape.tokens, in.shape.tokens};
    each_head(in, threads, [&](int64_t row, int64_t head) {
        const int64_t place = in.state_place(row, head);
        advance(in, plan, row, head, Wide{in.state ? in.state + place : nullptr, final_states + place}, y);
    });
}

template <StateFormat format, class E>
void scan_rounded(const Inputs<E>& in, const Plan* plans, const States& states, E* y, int threads) {
    using Head = Rounded<format>;
    const Shape& shape = in.shape;
    const int64_t blocks = scale_blocks(shape.state);
    each_head(in, threads, [&](int64_t row, int64_t head) {
        const int64_t heads = row * shape.heads + head;
        const Head kept{static_cast<typename Head::C::Code*>(states.codes) + in.state_place(row, head),
                        Head::C::scaled ? states.scales + heads * shape.width * blocks : nullptr, states.key,
                        states.positions[row], head * shape.width * shape.state};
        advance(in, plans[row], row, head, kept, y);
    });
}

}  // namespace

template <class E>
void scan_rows(const Inputs<E>& in, const Plan* plans, const States& states, E* y, int threads) {
    switch (states.format) {
        case kBf16: return scan_rounded<kBf16>(in, plans, states, y, threads);
        case kFp16: return scan_rounded<kFp16>(in, plans, states, y, threads);
        case kFp16Stochastic: return scan_rounded<kFp16Stochastic>(in, plans, states, y, threads);
        case kInt8: return scan_rounded<kInt8>(in, plans, states, y, threads);
        case kInt8Stochastic: return scan_rounded<kInt8Stochastic>(in, plans, states, y, threads);
        case kFp8: return scan_rounded<kFp8>(in, plans, states, y, threads);
        case kFp8Stochastic: return scan_rounded<kFp8Stochastic>(in, plans, states, y, threads);
        default: break;
    }
    each_head(in, threads, [&](int64_t row, int64_t head) {
        float* place = static_cast<float*>(states.codes) + in.state_place(row, head);
        advance(in, plans[row], row, head, Wide{place, place}, y);
    });
}

template void scan_rows(const Inputs<float>&, const Plan*, const States&, float*, int);
template void scan_rows(const Inputs<bf16>&, const Plan*, const States&, bf16*, int);

}  // namespace seqloom::scan

using seqloom::bf16;
using seqloom::scan::Inputs;

// As in the forward pass, without notes; the chunk does not matter.
extern "C" void seqloom_ssd_step_f32(const int64_t* sizes, const float* x, const float* b, const float* c,
                                     const float* raw, const float* bias, const float* rates, const float* skip,
                                     const float* state, const int32_t* documents, float* y, float* final_states,
                                     int32_t threads) {
    const Inputs<float> in(sizes, x, b, c, raw, bias, rates, skip, state, documents);
    seqloom::scan::step(in, y, final_states, threads);
}

extern "C" void seqloom_ssd_step_bf16(const int64_t* sizes, const bf16* x, const bf16* b, const bf16* c,
                                      const float* raw, const float* bias, const float* rates, const float* skip,
                                      const float* state, const int32_t* documents, bf16* y, float* final_states,
                                      int32_t threads) {
    const Inputs<bf16> in(sizes, x, b, c, raw, bias, rates, skip, state, documents);
    seqloom::scan::step(in, y, final_states, threads);
}
