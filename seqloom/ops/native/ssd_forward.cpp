// The scan forward, piece by piece; see ssd.h for the means and ops/ssd.py for the equations.
//
// A state is kept as [N, P], so that the right side of every product lies in rows.
#include "ssd.h"

namespace seqloom::scan {
namespace {

struct Room {
    Borders borders;
    Decays decays;
    Matrix b, b_columns, c, scores, weights, u, written, y, states;

    Room(Arena& arena, const Shape& shape)
        : borders(arena, shape),
          decays(arena, shape),
          b(arena.matrix(shape.chunk, shape.state)),
          b_columns(arena.matrix(shape.state, shape.chunk)),
          c(arena.matrix(shape.chunk, shape.state)),
          scores(arena.matrix(shape.chunk, shape.chunk)),
          weights(arena.matrix(shape.chunk, shape.chunk)),
          u(arena.matrix(shape.chunk, shape.width)),
          written(arena.matrix(shape.chunk, shape.width)),
          y(arena.matrix(shape.chunk, shape.width)),
          states(arena.matrix(shape.block_heads() * shape.state, shape.width)) {}
};

template <class E>
class Forward {
public:
    Forward(const Inputs<E>& in, int64_t number, E* y, float* notes, float* final_states)
        : in_(in),
          shape_(in.shape),
          task_(in.shape, number),
          room_(in_scratch<Room>(in.shape)),
          y_(y),
          notes_(notes),
          final_states_(final_states) {}

    void run() {
        for (int64_t head = task_.first; head < task_.last; ++head) enter(head);
        for (int64_t piece = 0; piece < shape_.pieces(); ++piece) {
            start_ = piece * shape_.chunk;
            carried_ = piece > 0 || in_.state;
            lay_out();
            for (int64_t head = task_.first; head < task_.last; ++head) {
                if (piece > 0 && notes_) leave(head, notes_ + in_.note_place(task_.row, head, piece));
                advance(head);
            }
        }
        for (int64_t head = task_.first; head < task_.last; ++head)
            leave(head, final_states_ + in_.state_place(task_.row, head));
    }

private:
    Matrix state_of(int64_t head) const {
        return {room_.states.row((head - task_.first) * shape_.state), room_.states.apart};
    }

    E* y_at(int64_t i, int64_t head) const {
        return y_ + ((task_.row * shape_.tokens + start_ + i) * shape_.heads + head) * shape_.width;
    }

    void enter(int64_t head) {
        const Matrix state = state_of(head);
        clear(shape_.state, shape_.width, state);
        if (in_.state)
            transpose(shape_.width, shape_.state, in_.state + in_.state_place(task_.row, head), shape_.state,
                      state.data, state.apart);
    }

    void leave(int64_t head, float* place) const {
        const Matrix state = state_of(head);
        transpose(shape_.state, shape_.width, state.data, state.apart, place, shape_.state);
    }

    // What the heads of the group share.
    void lay_out() {
        const int64_t count = std::min(shape_.chunk, shape_.tokens - start_);
        room_.borders.find(in_.documents_of(task_.row), start_, count);
        copy(count, shape_.state, in_.b.at(task_.row, start_, task_.group), in_.b.token, room_.b);
        copy(count, shape_.state, in_.c.at(task_.row, start_, task_.group), in_.c.token, room_.c);
        transpose(count, shape_.state, room_.b.data, room_.b.apart, room_.b_columns.data, room_.b_columns.apart);
        clear_tails(shape_.state, count, room_.b_columns);
        lower_product(count, shape_.state, plain(room_.c), room_.b_columns, room_.scores);
    }

    void advance(int64_t head) {
        const int64_t count = room_.borders.tokens, width = shape_.width;
        const Matrix state = state_of(head), y = room_.y;
        room_.decays.find(in_.steps, task_.row, head, start_, room_.borders);
        const auto [later_start, later_head] = task_.after(head, start_, shape_.chunk);
        for (int64_t i = 0; i < count; ++i) {
            fetch_row(width, in_.x.at(task_.row, later_start + i, later_head));
            fetch_row<true>(width, y_at(i, head));
            copy_row(width, in_.x.at(task_.row, start_ + i, head), room_.decays.steps[i], room_.u.row(i));
            copy_row(width, room_.u.row(i), room_.decays.leaving[i], room_.written.row(i));
        }
        weigh();
        if (carried_) {
            product(count, width, shape_.state, plain(room_.c), state, y, false);
            for (int64_t i = 0; i < count; ++i) copy_row(width, y.row(i), room_.decays.entering[i], y.row(i));
            scale(shape_.state, width, room_.decays.across, state);
        }
        product<Terms::up_to_row>(count, width, count, plain(room_.weights), room_.u, y, carried_);
        product(shape_.state, width, count, transposed(room_.b), room_.written, state, carried_);
        for (int64_t i = 0; i < count; ++i)
            add_skip(in_, task_.row, start_ + i, head, y.row(i), y_at(i, head));
    }

    // weights[i, j] = exp(α_i − α_j) scores[i, j] where i sees j, zero beside it.
    [[gnu::noinline]] void weigh() {
        const int64_t tokens = room_.borders.tokens;
        for (int64_t i = 0; i < tokens; ++i) {
            const int64_t first = room_.borders.first[i];
            float* weights = room_.weights.row(i);
            const float* scores = room_.scores.row(i);
            for (int64_t j = first / W * W; j <= i; j += W)
                store(weights + j, room_.decays.between(i, j) * load(scores + j));
            std::fill(weights, weights + first, 0.0f);
            std::fill(weights + i + 1, weights + std::min<int64_t>(tokens, i + gemm_parts::kRows), 0.0f);
        }
    }

    const Inputs<E>& in_;
    const Shape& shape_;
    const Task task_;
    Room room_;
    E* y_;
    float *notes_, *final_states_;
    int64_t start_ = 0;
    bool carried_ = false;
};

template <class E>
void forward(const Inputs<E>& in, E* y, float* notes, float* final_states, int threads) {
    parallel_for(in.shape.tasks(), threads,
                 [&](int64_t number) { Forward<E>(in, number, y, notes, final_states).run(); });
}

}  // namespace
}  // namespace seqloom::scan

using seqloom::bf16;
using seqloom::scan::Inputs;

// y [B, T, H, P] in the type of x; notes [B, H, pieces - 1, P, N], null where none are wanted; final_states [B, H, P, N].
extern "C" void seqloom_ssd_forward_f32(const int64_t* sizes, const float* x, const float* b, const float* c,
                                        const float* raw, const float* bias, const float* rates, const float* skip,
                                        const float* state, const int32_t* documents, float* y, float* notes,
                                        float* final_states, int32_t threads) {
    const Inputs<float> in(sizes, x, b, c, raw, bias, rates, skip, state, documents);
    seqloom::scan::forward(in, y, notes, final_states, threads);
}

extern "C" void seqloom_ssd_forward_bf16(const int64_t* sizes, const bf16* x, const bf16* b, const bf16* c,
                                         const float* raw, const float* bias, const float* rates, const float* skip,
                                         const float* state, const int32_t* documents, bf16* y, float* notes,
                                         float* final_states, int32_t threads) {
    const Inputs<bf16> in(sizes, x, b, c, raw, bias, rates, skip, state, documents);
    seqloom::scan::forward(in, y, notes, final_states, threads);
}
