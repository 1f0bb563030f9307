// Routed experts: every token through the squared-ReLU MLPs that its router chose, forward and backward, plain or with
// low-rank adapters on matrices that stay as they are: W + scale b a.
//
// Forward, a task is a block of one expert's rows: gathered, multiplied by `up`, squared, multiplied by `down`, all
// while the block is in the cache. Then every token sums its rows. Backward, a task is a longer run of one expert's
// rows, block after block, so that the expert's gradients gather in one place; where an expert has several runs, their
// parts are added up afterwards, in order. A few rows, as in generation, are instead multiplied as they are, at the
// speed of reading the weights that they chose. Sums depend neither on threads nor on what a token's neighbours are.
#include <algorithm>
#include <array>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#include "expert_rows.h"
#include "few_rows.h"
#include "gemm.h"
#include "simd.h"
#include "threads.h"

namespace seqloom {
namespace {

constexpr int64_t block_rows = 384;            // of an expert, in the cache together
constexpr int64_t run_rows = 4 * block_rows;   // of an expert, summed into its gradients by one task
constexpr int64_t few_each = 12;               // rows of an expert on average, that are multiplied row by row
constexpr int64_t worth_threads = 1 << 18;     // numbers in the matrices of few rows
constexpr int64_t piece = 1 << 14;             // numbers of a gradient whose parts one task adds up

enum Slot { inputs_slot = 4, dy_slot, hidden_slot, change_slot, narrow_slot, spare_slot, target_slot };

template <class T>
T* memory(int64_t numbers, int slot) {
    return static_cast<T*>(scratch(size_t(numbers) * sizeof(T), slot));
}

vf relu(vf x) { return x < 0.0f ? vf{} : x; }  // a NaN stays one

template <class T>
Strided<T> by_rows(const T* data, int64_t width) {
    return {data, width, 1};
}

template <class T>
Strided<T> by_columns(const T* data, int64_t width) {
    return {data, 1, width};
}

// The matrices W + scale b a of all experts, [out, in] each. With rank 0 there is no adapter.
template <class T, class Stored>
struct Stack {
    int64_t out, in;
    const Stored* base;
    int64_t rank;
    const T *a, *b;
    float scale;

    const Stored* base_of(int64_t e) const { return base + e * out * in; }
    const T* a_of(int64_t e) const { return a + e * rank * in; }
    const T* b_of(int64_t e) const { return b + e * out * rank; }
};

// y [m, n] = x [m, k] w [n, k]^T, or y += that.
template <class X, class V>
void multiply(bool few, int64_t m, int64_t n, int64_t k, const X* x, const V* w, float* y, bool add) {
    if (!few) return gemm(m, n, k, by_rows(x, k), by_columns(w, k), y, n, add);
    using Weights = std::conditional_t<std::is_same<V, float>::value, Fp32, Bf16>;
    const int64_t width = arranged_width<Weights>(k);
    float* arranged = memory<float>(m * width + (add ? m * n : 0), spare_slot);
    float* product = add ? arranged + m * width : y;
    for (int64_t i = 0; i < m; ++i) arrange<Weights>(x + i * k, k, arranged + i * width);
    few_rows<Weights>(m, n, k, arranged, width, {w, k}, product, n);
    if (add)
        for (int64_t i = 0; i < m * n; ++i) y[i] += product[i];
}

void scale_by(float factor, float* x, int64_t count) {
    for (int64_t i = 0; i < count; ++i) x[i] *= factor;
}

// y [R, out] = x [R, in] (W + scale b a)^T.
template <class X, class T, class Stored>
void through(bool few, int64_t R, const X* x, const Stack<T, Stored>& w, int64_t e, float* y) {
    multiply(few, R, w.out, w.in, x, w.base_of(e), y, false);
    if (w.rank == 0) return;
    float* narrow = memory<float>(R * w.rank, narrow_slot);
    multiply(few, R, w.rank, w.in, x, w.a_of(e), narrow, false);
    scale_by(w.scale, narrow, R * w.rank);
    multiply(few, R, w.out, w.rank, narrow, w.b_of(e), y, true);
}

// relu(before)^2 in place, of `before` as T holds it, which is kept unless `kept` is NULL.
template <class T>
void activate(float* before, int64_t count, T* kept) {
    auto step = [&](int64_t i, int64_t n) {
        T held[W];
        store(held, n == W ? load(before + i) : load(before + i, n));
        if (kept) std::copy_n(held, n, kept + i);
        vf x = relu(load(held));
        n == W ? store(before + i, x * x) : store(before + i, x * x, n);
    };
    int64_t i = 0;
    for (; i + W <= count; i += W) step(i, W);
    if (i < count) step(i, count - i);
}

// The way back through weight * down(relu(before)^2) for one row. `change` comes as the gradient of the square but for
// the weight and goes as that of `before`; `weighted` becomes weight relu(before)^2. Gives the gradient of the weight.
template <class T>
float deactivate(const T* before, float weight, int64_t count, float* change, float* weighted) {
    vf dweight{};
    auto step = [&](vf x, vf dsquared, auto put) {
        x = relu(x);
        dweight = fma(x * x, dsquared, dweight);
        put(x * dsquared * (2.0f * weight), x * x * weight);
    };
    int64_t i = 0;
    for (; i + W <= count; i += W)
        step(load(before + i), load(change + i), [=](vf a, vf b) { store(change + i, a), store(weighted + i, b); });
    if (const int64_t n = count - i)
        step(load(before + i, n), load(change + i, n),
             [=](vf a, vf b) { store(change + i, a, n), store(weighted + i, b, n); });
    return sum(dweight);
}

template <class T>
void narrow_to(const float* from, T* to, int64_t count) {
    int64_t i = 0;
    for (; i + W <= count; i += W) store(to + i, load(from + i));
    if (i < count) store(to + i, load(from + i, count - i), count - i);
}

// What one call works on.
template <class T, class Stored>
struct Problem {
    Sizes sizes;
    Sorted sorted;
    const T* x;
    const float* weights;
    Stack<T, Stored> up, down;
    int threads;
};

template <class T, class Stored>
void forward(const Problem<T, Stored>& p, T* hidden, float* outputs, T* y) {
    const int64_t I = p.sizes.I, F = p.sizes.F;
    const bool few = p.sizes.rows() <= few_each * p.sizes.E;
    const std::vector<Rows> blocks = blocks_of_all(p.sorted, p.sizes.E, block_rows);
    const bool alone = few && int64_t(blocks.size()) * I * F < worth_threads;
    parallel_for(int64_t(blocks.size()), alone ? 1 : p.threads, [&](int64_t task) {
        const Rows& rows = blocks[task];
        const int64_t R = rows.count();
        T* inputs = memory<T>(R * I, inputs_slot);
        float* before = memory<float>(R * F, hidden_slot);
        gather(p.x, p.sorted, rows, p.sizes, inputs);
        through(few, R, inputs, p.up, rows.expert, before);
        activate(before, R * F, hidden ? hidden + rows.first * F : nullptr);
        through(few, R, before, p.down, rows.expert, outputs + rows.first * I);
    });
    sum_by_token(outputs, p.weights, p.sorted, p.sizes, y, few ? 1 : p.threads);
}

// The gradients of one expert's matrix and of its adapter: where they are summed up, NULL where one is not wanted.
struct Sums {
    float *base, *a, *b;
};

// From the gradient dy [R, out] of what W + scale b a gave to that of its inputs, dx [R, in], unless dx is NULL; and
// `narrow` [R, rank], the gradient within the adapter, which the sums below need.
template <class D, class T, class Stored>
void back_to_inputs(int64_t R, const D* dy, const Stack<T, Stored>& w, int64_t e, float* dx, float* narrow) {
    if (dx) gemm(R, w.in, w.out, by_rows(dy, w.out), by_rows(w.base_of(e), w.in), dx, w.in, false);
    if (w.rank == 0) return;
    gemm(R, w.rank, w.out, by_rows(dy, w.out), by_rows(w.b_of(e), w.rank), narrow, w.rank, false);
    scale_by(w.scale, narrow, R * w.rank);
    if (dx) gemm(R, w.in, w.rank, by_rows(narrow, w.rank), by_rows(w.a_of(e), w.in), dx, w.in, true);
}

// To the matrices, from inputs x [R, in]: added to what the sums hold if `add`.
template <class D, class X, class T, class Stored>
void back_to_matrices(int64_t R, const D* dy, const X* x, const float* narrow, const Stack<T, Stored>& w, int64_t e,
                      const Sums& to, bool add) {
    if (to.base) gemm(w.out, w.in, R, by_columns(dy, w.out), by_rows(x, w.in), to.base, w.in, add);
    if (to.a) gemm(w.rank, w.in, R, by_columns(narrow, w.rank), by_rows(x, w.in), to.a, w.in, add);
    if (!to.b) return;
    float* reduced = memory<float>(R * w.rank, spare_slot);
    gemm(R, w.rank, w.in, by_rows(x, w.in), by_columns(w.a_of(e), w.in), reduced, w.rank, false);
    scale_by(w.scale, reduced, R * w.rank);
    gemm(w.out, w.rank, R, by_columns(dy, w.out), by_rows(reduced, w.rank), to.b, w.rank, add);
}

// One block of an expert's rows. dinputs, of all rows in the order of experts, is NULL where it is not wanted.
template <class T, class Stored>
void backward_block(const Problem<T, Stored>& p, const Rows& rows, const T* dy, const T* hidden, float* dweights,
                    float* dinputs, const Sums& up, const Sums& down, bool add) {
    const int64_t I = p.sizes.I, F = p.sizes.F, R = rows.count(), e = rows.expert;
    T* dys = memory<T>(R * I, dy_slot);
    float* change = memory<float>(R * F, change_slot);
    float* weighted = memory<float>(R * F, hidden_slot);
    float* narrow = memory<float>(R * std::max(p.up.rank, p.down.rank), narrow_slot);
    gather(dy, p.sorted, rows, p.sizes, dys);
    back_to_inputs(R, dys, p.down, e, change, narrow);
    for (int64_t r = 0; r < R; ++r) {
        const int64_t assignment = p.sorted.order[rows.first + r];
        dweights[assignment] = deactivate(hidden + (rows.first + r) * F, p.weights[assignment], F, change + r * F,
                                          weighted + r * F);
    }
    back_to_matrices(R, dys, weighted, narrow, p.down, e, down, add);
    T* inputs = memory<T>(R * I, inputs_slot);
    gather(p.x, p.sorted, rows, p.sizes, inputs);
    back_to_inputs(R, change, p.up, e, dinputs ? dinputs + rows.first * I : nullptr, narrow);
    back_to_matrices(R, change, inputs, narrow, p.up, e, up, add);
}

// A run of one expert's rows, and which of the parts its gradients are; -1 where it is the only run.
struct Run {
    Rows rows;
    int64_t part;
};

std::vector<Run> runs_of_all(const Sorted& sorted, int64_t experts, int64_t* parts) {
    std::vector<Run> runs;
    *parts = 0;
    for (int64_t e = 0; e < experts; ++e) {
        const Rows rows{e, sorted.starts[e], sorted.starts[e + 1]};
        if (rows.count() <= run_rows) runs.push_back({rows, -1});
        else
            for (const Rows& some : cut(rows, run_rows)) runs.push_back({some, (*parts)++});
    }
    return runs;
}

// A wanted gradient of all experts, `numbers` each, and the parts of those that have several runs.
template <class T>
struct Gradient {
    T* whole;
    int64_t numbers;
    std::unique_ptr<float[]> parts;

    Gradient(void* gradient, int64_t count) : whole(static_cast<T*>(gradient)), numbers(count) {}

    // Where a run sums up its own.
    float* place(const Run& run, int slot) const {
        if (!whole) return nullptr;
        float* to = nullptr;
        if (run.part >= 0) to = parts.get() + run.part * numbers;
        else if constexpr (std::is_same<T, float>::value) to = whole + run.rows.expert * numbers;
        else to = memory<float>(numbers, slot);
        if (run.rows.count() == 0) std::fill_n(to, numbers, 0.0f);
        return to;
    }

    void finish(const Run& run, const float* from) const {
        if constexpr (!std::is_same<T, float>::value)
            if (whole && run.part < 0) narrow_to(from, whole + run.rows.expert * numbers, numbers);
    }
};

// The parts of an expert with several runs, added up in their order.
template <class T>
void add_parts(const Gradient<T>& gradient, const std::vector<Run>& runs, int threads) {
    std::vector<std::pair<const Run*, int64_t>> shared;  // an expert's first run, and how many it has
    for (const Run& run : runs) {
        if (run.part < 0) continue;
        if (!shared.empty() && shared.back().first->rows.expert == run.rows.expert) ++shared.back().second;
        else shared.push_back({&run, 1});
    }
    const int64_t numbers = gradient.numbers, pieces = (numbers + piece - 1) / piece;
    parallel_for(int64_t(shared.size()) * pieces, threads, [&](int64_t task) {
        const auto [run, count] = shared[task / pieces];
        const int64_t begin = task % pieces * piece, length = std::min(piece, numbers - begin);
        const float* part = gradient.parts.get() + run->part * numbers + begin;
        float* total = memory<float>(length, spare_slot);
        std::copy_n(part, length, total);
        for (int64_t k = 1; k < count; ++k)
            for (int64_t i = 0; i < length; ++i) total[i] += part[k * numbers + i];
        narrow_to(total, gradient.whole + run->rows.expert * numbers + begin, length);
    });
}

// `to` are the gradients of up, its a and b, and of down, its a and b.
template <class T, class Stored>
void backward(const Problem<T, Stored>& p, const T* dy, const T* hidden, T* dx, float* dweights, float* dinputs,
              std::array<Gradient<T>, 6> to) {
    int64_t parts;
    const std::vector<Run> runs = runs_of_all(p.sorted, p.sizes.E, &parts);
    for (Gradient<T>& gradient : to)
        if (gradient.whole) gradient.parts.reset(new float[parts * gradient.numbers]);
    parallel_for(int64_t(runs.size()), p.threads, [&](int64_t task) {
        const Run& run = runs[task];
        float* at[6];
        for (int i = 0; i < 6; ++i) at[i] = to[i].place(run, target_slot + i);
        for (const Rows& block : cut(run.rows, block_rows))
            backward_block(p, block, dy, hidden, dweights, dinputs, {at[0], at[1], at[2]}, {at[3], at[4], at[5]},
                           block.first > run.rows.first);
        for (int i = 0; i < 6; ++i) to[i].finish(run, at[i]);
    });
    if (parts > 0)
        for (const Gradient<T>& gradient : to)
            if (gradient.whole) add_parts(gradient, runs, p.threads);
    if (dx) sum_by_token(dinputs, nullptr, p.sorted, p.sizes, dx, p.threads);
}

}  // namespace
}  // namespace seqloom

using namespace seqloom;

namespace {

// What Python hands over: tokens x [S, I], choices and their weights [S, K], up [E, F, I] and down [E, I, F] with their
// adapters, and `work` for sorting, see `sort` for its size and what it tells. All are contiguous. Where `kind` is 0
// all is FP32, where it is 1 all but the weights is BF16, where it is 2 only up and down are.
struct Arguments {
    const void* x;
    const int64_t* chosen;
    const float* weights;
    const void *up, *up_a, *up_b, *down, *down_a, *down_b;
    int32_t* work;
    int64_t S, K, E, I, F, up_rank, down_rank;
    float scale;
    int32_t kind, threads;
};

template <class F>
void with_problem(const Arguments& g, F&& use) {
    const Sizes sizes{g.S, g.K, g.E, g.I, g.F};
    Sorted sorted;
    if (!sort(g.chosen, sizes, g.work, &sorted)) return;
    auto run = [&](auto one, auto stored) {
        using T = decltype(one);
        using V = decltype(stored);
        using S = Stack<T, V>;
        const S up{g.F, g.I, (const V*)g.up, g.up_rank, (const T*)g.up_a, (const T*)g.up_b, g.scale};
        const S down{g.I, g.F, (const V*)g.down, g.down_rank, (const T*)g.down_a, (const T*)g.down_b, g.scale};
        use(Problem<T, V>{sizes, sorted, (const T*)g.x, g.weights, up, down, int(g.threads)}, one);
    };
    if (g.kind == 0) run(0.0f, 0.0f);
    else if (g.kind == 1) run(bf16{}, bf16{});
    else run(0.0f, bf16{});
}

}  // namespace

// y is [S, I]. `hidden` [S K, F] gets what the activation got, in the order of experts, unless it is NULL. `outputs`
// [S K, I] is there to work in.
extern "C" void seqloom_experts_forward(const Arguments* arguments, void* hidden, float* outputs, void* y) {
    with_problem(*arguments, [&](const auto& problem, auto one) {
        using T = decltype(one);
        forward(problem, (T*)hidden, outputs, (T*)y);
    });
}

// Gradients are stored as x is and NULL where not wanted; that of the weights is FP32 and always wanted. `dinputs`
// [S K, I] is there to work in, NULL with dx.
extern "C" void seqloom_experts_backward(const Arguments* arguments, const void* dy, const void* hidden, void* dx,
                                         float* dweights, float* dinputs, void* dup, void* dup_a, void* dup_b,
                                         void* ddown, void* ddown_a, void* ddown_b) {
    const Arguments& g = *arguments;
    with_problem(g, [&](const auto& problem, auto one) {
        using T = decltype(one);
        const int64_t matrix = g.I * g.F;
        backward(problem, (const T*)dy, (const T*)hidden, (T*)dx, dweights, dinputs,
                 {Gradient<T>(dup, matrix), Gradient<T>(dup_a, g.up_rank * g.I), Gradient<T>(dup_b, g.F * g.up_rank),
                  Gradient<T>(ddown, matrix), Gradient<T>(ddown_a, g.down_rank * g.F),
                  Gradient<T>(ddown_b, g.I * g.down_rank)});
    });
}
