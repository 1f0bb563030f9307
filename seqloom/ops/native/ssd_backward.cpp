// The scan backward, from the last piece to the first; see ssd.h for the means and ops/ssd.py for the equations.
//
// The decay at step t is passed by all that a later token reads of an earlier one. Its gradient sums just these pairs,
//
//     ∂log_t = Σ_{j<t≤i} pair[i, j]  +  Σ_{i≥t} (what i reads of the state before)  +  Σ_{j<t} (what j writes to the
//              state after)  +  (what the state after has of the state before),
//
// in FP64, so that nothing cancels that does not belong to it. Going up from the last row, one vector holds the columns'
// sums over the rows so far, and each step adds up a part of it.
#include "ssd.h"

namespace seqloom::scan {
namespace {

struct Room {
    Borders borders;
    Decays decays;
    Matrix b, b_columns, c, scores, dscores, db, dc;
    Matrix u, u_columns, written, dy, read, du, pairs, before, dafter, gathered, dstates;
    double *columns, *crossing, *reading, *writing;
    float* reads;

    Room(Arena& arena, const Shape& shape)
        : borders(arena, shape),
          decays(arena, shape),
          b(arena.matrix(shape.chunk, shape.state)),
          b_columns(arena.matrix(shape.state, shape.chunk)),
          c(arena.matrix(shape.chunk, shape.state)),
          scores(arena.matrix(shape.chunk, shape.chunk)),
          dscores(arena.matrix(shape.chunk, shape.chunk)),
          db(arena.matrix(shape.chunk, shape.state)),
          dc(arena.matrix(shape.chunk, shape.state)),
          u(arena.matrix(shape.chunk, shape.width)),
          u_columns(arena.matrix(shape.width, shape.chunk)),
          written(arena.matrix(shape.chunk, shape.width)),
          dy(arena.matrix(shape.chunk, shape.width)),
          read(arena.matrix(shape.chunk, shape.width)),
          du(arena.matrix(shape.chunk, shape.width)),
          pairs(arena.matrix(shape.chunk, shape.chunk)),
          before(arena.matrix(shape.width, shape.state)),
          dafter(arena.matrix(shape.width, shape.state)),
          gathered(arena.matrix(shape.chunk, shape.state)),
          dstates(arena.matrix(shape.block_heads() * shape.state, shape.width)),
          columns(arena.take<double>(whole(shape.chunk))),
          crossing(arena.take<double>(shape.chunk)),
          reading(arena.take<double>(shape.chunk)),
          writing(arena.take<double>(shape.chunk)),
          reads(arena.take<float>(whole(shape.chunk))) {}
};

// Where gradients go. Those of the parameters are one number for every row and head.
template <class E>
struct Outputs {
    Sequence<E> dx, db, dc;
    float *db_parts, *dc_parts;  // [rows, tokens, groups, blocks, state] if a group has several blocks
    float* draw;                 // [rows, tokens, heads], of the raw steps
    double *dbias, *drates, *dskip;
    float* dstate;  // of the given state; null if not wanted
};

template <class E>
class Backward {
public:
    Backward(const Inputs<E>& in, const Outputs<E>& out, int64_t number, const float* notes, Sequence<const E> dy,
             const float* dfinal)
        : in_(in),
          out_(out),
          shape_(in.shape),
          task_(in.shape, number),
          room_(in_scratch<Room>(in.shape)),
          notes_(notes),
          dy_(dy),
          dfinal_(dfinal) {}

    void run() {
        for (int64_t head = task_.first; head < task_.last; ++head) enter(head);
        for (int64_t piece = shape_.pieces() - 1; piece >= 0; --piece) {
            piece_ = piece;
            start_ = piece * shape_.chunk;
            count_ = std::min(shape_.chunk, shape_.tokens - start_);
            carried_ = piece > 0 || in_.state;
            goes_on_ = piece + 1 < shape_.pieces() || dfinal_;
            lay_out();
            for (int64_t head = task_.first; head < task_.last; ++head) go_back(head);
            finish_shared();
        }
        if (out_.dstate)
            for (int64_t head = task_.first; head < task_.last; ++head) leave(head);
    }

private:
    // The gradient of a state as [N, P].
    Matrix dstate_of(int64_t head) const {
        return {room_.dstates.row((head - task_.first) * shape_.state), room_.dstates.apart};
    }

    void enter(int64_t head) {
        const int64_t place = task_.row * shape_.heads + head;
        out_.dbias[place] = out_.drates[place] = out_.dskip[place] = 0;
        const Matrix dstate = dstate_of(head);
        clear(shape_.state, shape_.width, dstate);
        if (dfinal_)
            transpose(shape_.width, shape_.state, dfinal_ + in_.state_place(task_.row, head), shape_.state,
                      dstate.data, dstate.apart);
    }

    void leave(int64_t head) const {
        const Matrix dstate = dstate_of(head);
        transpose(shape_.state, shape_.width, dstate.data, dstate.apart,
                  out_.dstate + in_.state_place(task_.row, head), shape_.state);
    }

    void lay_out() {
        room_.borders.find(in_.documents_of(task_.row), start_, count_);
        copy(count_, shape_.state, in_.b.at(task_.row, start_, task_.group), in_.b.token, room_.b);
        copy(count_, shape_.state, in_.c.at(task_.row, start_, task_.group), in_.c.token, room_.c);
        transpose(count_, shape_.state, room_.b.data, room_.b.apart, room_.b_columns.data, room_.b_columns.apart);
        clear_tails(shape_.state, count_, room_.b_columns);
        lower_product(count_, shape_.state, plain(room_.c), room_.b_columns, room_.scores);
        clear(count_, count_, room_.dscores);
        clear(count_, shape_.state, room_.db);
        clear(count_, shape_.state, room_.dc);
    }

    void finish_shared() {
        product<Terms::up_to_row>(count_, shape_.state, count_, plain(room_.dscores), room_.b, room_.dc, true);
        product<Terms::from_row>(count_, shape_.state, count_, transposed(room_.dscores), room_.c, room_.db, true);
        hand_out(room_.db, out_.db, out_.db_parts);
        hand_out(room_.dc, out_.dc, out_.dc_parts);
    }

    void hand_out(Matrix gradient, const Sequence<E>& to, float* parts) const {
        const int64_t blocks = shape_.blocks(), across = shape_.groups * blocks * shape_.state;
        if (blocks == 1)
            copy_out(count_, shape_.state, gradient, to.at(task_.row, start_, task_.group), to.token);
        else
            copy_out(count_, shape_.state, gradient,
                     parts + (task_.row * shape_.tokens + start_) * across +
                         (task_.group * blocks + task_.block) * shape_.state,
                     across);
    }

    void go_back(int64_t head) {
        const Matrix dstate = dstate_of(head);
        room_.decays.find(in_.steps, task_.row, head, start_, room_.borders);
        lay_out_head(head);
        double across = 0;
        if (goes_on_) through_state_after(dstate);
        if (carried_) across = through_state_before(head);
        lower_product(count_, shape_.width, plain(room_.dy), room_.u_columns, room_.pairs);
        through_pairs();
        product<Terms::from_row>(count_, shape_.width, count_, transposed(room_.pairs), room_.dy, room_.du, goes_on_);
        hand_out_head(head, across);
        if (!carried_) return;
        if (goes_on_) scale(shape_.state, shape_.width, room_.decays.across, dstate);
        product(shape_.state, shape_.width, count_, transposed(room_.c), room_.read, dstate, goes_on_);
    }

    [[gnu::noinline]] void lay_out_head(int64_t head) {
        const int64_t width = shape_.width;
        const Decays& decays = room_.decays;
        const auto [later_start, later_head] = task_.after(head, start_, -shape_.chunk);
        for (int64_t i = 0; i < count_; ++i) {
            fetch_row(width, in_.x.at(task_.row, later_start + i, later_head));
            fetch_row(width, dy_.at(task_.row, later_start + i, later_head));
            fetch_row<true>(width, out_.dx.at(task_.row, start_ + i, head));
            copy_row(width, in_.x.at(task_.row, start_ + i, head), decays.steps[i], room_.u.row(i));
            copy_row(width, dy_.at(task_.row, start_ + i, head), 1, room_.dy.row(i));
            if (goes_on_) copy_row(width, room_.u.row(i), decays.leaving[i], room_.written.row(i));
            if (carried_) copy_row(width, room_.dy.row(i), decays.entering[i], room_.read.row(i));
        }
        transpose(count_, width, room_.u.data, room_.u.apart, room_.u_columns.data, room_.u_columns.apart);
        clear_tails(width, count_, room_.u_columns);
        std::fill_n(room_.reading, count_, 0.0);
        std::fill_n(room_.writing, count_, 0.0);
    }

    // What the tokens write to the state after: gradients of u and of b.
    [[gnu::noinline]] void through_state_after(Matrix dstate) {
        transpose(shape_.state, shape_.width, dstate.data, dstate.apart, room_.dafter.data, room_.dafter.apart);
        clear_tails(shape_.width, shape_.state, room_.dafter);
        product(count_, shape_.width, shape_.state, plain(room_.b), dstate, room_.du, false);
        product(count_, shape_.state, shape_.width, plain(room_.written), room_.dafter, room_.db, true);
        for (int64_t j = 0; j < count_; ++j) {
            room_.writing[j] = dot(shape_.width, room_.written.row(j), room_.du.row(j));
            copy_row(shape_.width, room_.du.row(j), room_.decays.leaving[j], room_.du.row(j));
        }
    }

    // What the tokens read of the state before: the gradient of c. Returns what the state after has of it.
    [[gnu::noinline]] double through_state_before(int64_t head) {
        const float* before = piece_ > 0 ? notes_ + in_.note_place(task_.row, head, piece_)
                                         : in_.state + in_.state_place(task_.row, head);
        copy(shape_.width, shape_.state, before, shape_.state, room_.before);
        product(count_, shape_.state, shape_.width, plain(room_.read), room_.before, room_.gathered, false);
        for (int64_t i = 0; i < count_; ++i) {
            room_.reading[i] = dot(shape_.state, room_.c.row(i), room_.gathered.row(i));
            float *dc = room_.dc.row(i), *gathered = room_.gathered.row(i);
            for (int64_t n = 0; n < shape_.state; n += W) store(dc + n, load(dc + n) + load(gathered + n));
        }
        double faded = 0;
        if (goes_on_)
            for (int64_t p = 0; p < shape_.width; ++p)
                faded += dot(shape_.state, room_.before.row(p), room_.dafter.row(p));
        return faded * room_.decays.across;
    }

    // From dy_i·u_j in `pairs`: the weights of the forward pass in their place, their gradient in dscores, and the sum
    // of the pairs that cross each step.
    [[gnu::noinline]] void through_pairs() {
        std::fill_n(room_.columns, whole(count_), 0.0);
        for (int64_t i = count_ - 1; i >= 0; --i) {
            const int64_t first = room_.borders.first[i];
            float *pairs = room_.pairs.row(i), *dscores = room_.dscores.row(i);
            const float* scores = room_.scores.row(i);
            for (int64_t j = first / W * W; j <= i; j += W) {
                vf decay = room_.decays.between(i, j), score = load(scores + j), dweight = load(pairs + j);
                if (j < first || j + W > i + 1) {
                    const vi seen = (lanes(j) >= int32_t(first)) & (lanes(j) <= int32_t(i));
                    decay = seen ? decay : vf{};
                    score = seen ? score : vf{};
                    dweight = seen ? dweight : vf{};
                }
                const vf dscore = dweight * decay;
                store(dscores + j, load(dscores + j) + dscore);
                store(pairs + j, decay * score);
                store(room_.reads + j, dscore * score);
            }
            room_.crossing[i] = crossing(first / W * W, i);
            std::fill(pairs, pairs + first, 0.0f);
            std::fill(pairs + i + 1, pairs + std::min<int64_t>(count_, i + gemm_parts::kRows), 0.0f);
        }
    }

    // Adds a row's `reads` to the columns; the sum of those before token i.
    double crossing(int64_t first, int64_t i) {
        constexpr int half = W / 2;
        double* columns = room_.columns;
        vd total = {};
        int64_t j = first;
        for (; j + half <= i; j += half) {
            const vd column = load(columns + j) + load_doubles(room_.reads + j);
            store(columns + j, column);
            total += column;
        }
        double result = sum(total);
        for (; j <= i; ++j) {
            columns[j] += room_.reads[j];
            if (j < i) result += columns[j];
        }
        return result;
    }

    [[gnu::noinline]] void hand_out_head(int64_t head, double across) {
        const int64_t place = task_.row * shape_.heads + head;
        const Decays& decays = room_.decays;
        const double rate = in_.steps.rates[head];
        double dbias = 0, drate = 0, dskip = 0;
        for (int64_t i = count_ - 2; i >= 0; --i) room_.reading[i] += room_.reading[i + 1];
        double written = 0;  // by earlier tokens
        for (int64_t i = 0; i < count_; ++i) {
            const double dlog = room_.crossing[i] + room_.reading[i] + written + across;
            written += room_.writing[i];
            float x_dy, x_du;
            hand_out_token(head, i, x_dy, x_du);
            const double draw = (x_du + rate * dlog) * decays.slopes[i];
            out_.draw[(task_.row * shape_.tokens + start_ + i) * shape_.heads + head] = float(draw);
            dbias += draw;
            drate += dlog * decays.steps[i];
            dskip += x_dy;
        }
        out_.dbias[place] += dbias;
        out_.drates[place] += drate;
        out_.dskip[place] += dskip;
    }

    void hand_out_token(int64_t head, int64_t i, float& x_dy, float& x_du) const {
        const E* x = in_.x.at(task_.row, start_ + i, head);
        E* dx = out_.dx.at(task_.row, start_ + i, head);
        const float *dy = room_.dy.row(i), *du = room_.du.row(i);
        const vf step = broadcast(room_.decays.steps[i]), skip = broadcast(in_.skip ? in_.skip[head] : 0.0f);
        vf with_dy = {}, with_du = {};
        by_vectors(shape_.width, [&](int64_t p, int64_t some) {
            const vf value = load_some(x + p, some), dvalue = load(du + p), skipped = load(dy + p);
            with_dy = fma(value, skipped, with_dy);
            with_du = fma(value, dvalue, with_du);
            store_some(dx + p, fma(skip, skipped, step * dvalue), some);
        });
        x_dy = sum(with_dy);
        x_du = sum(with_du);
    }

    const Inputs<E>& in_;
    const Outputs<E>& out_;
    const Shape& shape_;
    const Task task_;
    Room room_;
    const float* notes_;
    const Sequence<const E> dy_;
    const float* dfinal_;
    int64_t piece_ = 0, start_ = 0, count_ = 0;
    bool carried_ = false;  // the state before the piece may be other than zero
    bool goes_on_ = false;  // the state after it counts for something
};

template <class E>
void backward(const int64_t* sizes, const Inputs<E>& in, const float* notes, const E* dy, const float* dfinal, E* dx,
              E* db, E* dc, float* db_parts, float* dc_parts, float* draw, double* dbias, double* drates,
              double* dskip, float* dstate, int threads) {
    const Outputs<E> out{{dx, sizes[0], sizes[1], sizes[2]},
                         {db, sizes[3], sizes[4], sizes[5]},
                         {dc, sizes[6], sizes[7], sizes[8]},
                         db_parts,
                         dc_parts,
                         draw,
                         dbias,
                         drates,
                         dskip,
                         dstate};
    const Sequence<const E> dys{dy, sizes[9], sizes[10], sizes[11]};
    parallel_for(in.shape.tasks(), threads,
                 [&](int64_t number) { Backward<E>(in, out, number, notes, dys, dfinal).run(); });
}

}  // namespace
}  // namespace seqloom::scan

using seqloom::bf16;
using seqloom::scan::Inputs;

// Behind the sizes of the forward pass stand row, token and head strides of dx, db, dc and dy.
extern "C" void seqloom_ssd_backward_f32(const int64_t* sizes, const float* x, const float* b, const float* c,
                                         const float* raw, const float* bias, const float* rates, const float* skip,
                                         const float* state, const int32_t* documents, const float* notes,
                                         const float* dy, const float* dfinal, float* dx, float* db, float* dc,
                                         float* db_parts, float* dc_parts, float* draw, double* dbias, double* drates,
                                         double* dskip, float* dstate, int32_t threads) {
    const Inputs<float> in(sizes, x, b, c, raw, bias, rates, skip, state, documents);
    seqloom::scan::backward(sizes + 19, in, notes, dy, dfinal, dx, db, dc, db_parts, dc_parts, draw, dbias, drates,
                            dskip, dstate, threads);
}

extern "C" void seqloom_ssd_backward_bf16(const int64_t* sizes, const bf16* x, const bf16* b, const bf16* c,
                                          const float* raw, const float* bias, const float* rates, const float* skip,
                                          const float* state, const int32_t* documents, const float* notes,
                                          const bf16* dy, const float* dfinal, bf16* dx, bf16* db, bf16* dc,
                                          float* db_parts, float* dc_parts, float* draw, double* dbias,
                                          double* drates, double* dskip, float* dstate, int32_t threads) {
    const Inputs<bf16> in(sizes, x, b, c, raw, bias, rates, skip, state, documents);
    seqloom::scan::backward(sizes + 19, in, notes, dy, dfinal, dx, db, dc, db_parts, dc_parts, draw, dbias, drates,
                            dskip, dstate, threads);
}
