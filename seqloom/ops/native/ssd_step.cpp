// A few tokens of the scan, one after the other, as a decoder takes them.
//
// All that costs is reading and writing the state, so a few rows of it take all tokens before the next rows are read.
#include "ssd.h"

namespace seqloom::scan {
namespace {

constexpr int kStateRows = 4;                // at a time
constexpr int64_t kWorthThreads = 1 << 16;   // numbers of all states

struct Room {
    Borders borders;
    Decays decays;
    Matrix b, c, u, y;
    float* across;  // decay from token to token

    Room(Arena& arena, const Shape& shape)
        : borders(arena, shape),
          decays(arena, shape),
          b(arena.matrix(shape.tokens, shape.state)),
          c(arena.matrix(shape.tokens, shape.state)),
          u(arena.matrix(shape.tokens, shape.width)),
          y(arena.matrix(shape.tokens, shape.width)),
          across(arena.take<float>(whole(shape.tokens))) {}
};

// R rows of the state meet one token: next = decay * old + u b^T, y = next c. Without `old` it is zero.
template <int R>
void meet(int64_t columns, const float* old, float* next, float decay, const float* u, const float* b, const float* c,
          float* y) {
    vf read[R] = {};
    by_vectors(columns, [&](int64_t n, int64_t some) {
        const vf written = load(b + n), wanted = load(c + n);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
            vf state = written * u[r];
            if (old) state = fma(load_some(old + r * columns + n, some), broadcast(decay), state);
            store_some(next + r * columns + n, state, some);
            read[r] = fma(state, wanted, read[r]);
        }
    });
    for (int r = 0; r < R; ++r) y[r] = sum(read[r]);
}

template <class E>
void advance(const Inputs<E>& in, int64_t row, int64_t head, E* y, float* final_states) {
    const Shape& shape = in.shape;
    const int64_t tokens = shape.tokens, width = shape.width, group = head / (shape.heads / shape.groups);
    Room room = in_scratch<Room>(shape);
    room.borders.find(in.documents_of(row), 0, tokens);
    room.decays.find(in.steps, row, head, 0, room.borders);
    copy(tokens, shape.state, in.b.at(row, 0, group), in.b.token, room.b);
    copy(tokens, shape.state, in.c.at(row, 0, group), in.c.token, room.c);
    for (int64_t t = 0; t < whole(tokens); t += W)
        store(room.across + t, exp(load(room.decays.steps + t) * in.steps.rates[head]));
    for (int64_t t = 0; t < tokens; ++t)
        copy_row(width, in.x.at(row, t, head), room.decays.steps[t], room.u.row(t));

    const int64_t place = in.state_place(row, head);
    for (int64_t p = 0; p < width; p += kStateRows)
        for (int64_t t = 0; t < tokens; ++t) {
            const int64_t part = place + p * shape.state;
            const float* before = t > 0 ? final_states : in.state;
            const float* old = before && !room.borders.resets(t) ? before + part : nullptr;
            auto with = [&](auto meet_rows) {
                meet_rows(shape.state, old, final_states + part, room.across[t], room.u.row(t) + p, room.b.row(t),
                          room.c.row(t), room.y.row(t) + p);
            };
            switch (std::min<int64_t>(kStateRows, width - p)) {
                case 1: with(meet<1>); break;
                case 2: with(meet<2>); break;
                case 3: with(meet<3>); break;
                default: with(meet<kStateRows>);
            }
        }
    for (int64_t t = 0; t < tokens; ++t)
        add_skip(in, row, t, head, room.y.row(t), y + ((row * tokens + t) * shape.heads + head) * width);
}

template <class E>
void step(const Inputs<E>& in, E* y, float* final_states, int threads) {
    const Shape& shape = in.shape;
    const int64_t tasks = shape.rows * shape.heads;
    if (tasks * shape.width * shape.state < kWorthThreads) threads = 1;
    parallel_for(tasks, threads,
                 [&](int64_t task) { advance(in, task / shape.heads, task % shape.heads, y, final_states); });
}

}  // namespace
}  // namespace seqloom::scan

using seqloom::bf16;
using seqloom::scan::Inputs;

// As in the forward pass, without notes; the chunk is at least as long as the row.
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
