// Newton-Schulz iteration of many matrices, alone or inside Muon's whole step; see orthogonalise.py and train/muon.py.
//
// One step multiplies X by P(A), a polynomial of A = X Xᵀ, and turns A into P A P; all of these are symmetric and
// commute. So X waits for the product Q of several P, and what is multiplied meanwhile are squares of the short side,
// of which only the half up to the diagonal is computed. Where singular values are tiny the rounding in A grows
// twelvefold with every step. Three steps from a fresh A still round no worse than the plain iteration does.
//
// A matrix lies as it is given, tall or wide, and stays in the cache of its core. One that takes more than an even
// share of all the work is done by all threads together.
#include <algorithm>
#include <vector>

#include "gemm.h"
#include "lanes.h"
#include "threads.h"
#include "transpose.h"

namespace seqloom {
namespace {

constexpr int slot_work = 4, slot_update = 5;
constexpr int together = 3;                            // steps from a fresh A
constexpr int64_t some_rows = 16 * gemm_parts::kRows;  // of a product, for one thread at a time
constexpr int64_t few_rows = 4 * gemm_parts::kRows;    // the same of a small square, to waste less above the diagonal
constexpr int64_t some_numbers = 1 << 15;

struct Quintic {
    float a, b, c;
    int32_t steps;
};

struct Shape {
    int64_t rows, columns;

    int64_t size() const { return rows * columns; }
    int64_t side() const { return std::min(rows, columns); }  // of A
    int64_t length() const { return std::max(rows, columns); }
    bool tall() const { return rows > columns; }
    int64_t work() const { return side() * side() * (3 * length() + 7 * side()); }
};

// body(first, count) for every stretch of n.
template <class F>
void each_stretch(int64_t n, int64_t stretch, int threads, F&& body) {
    parallel_for((n + stretch - 1) / stretch, threads, [&](int64_t task) {
        body(task * stretch, std::min(stretch, n - task * stretch));
    });
}

// To a norm of one.
void normalise(float* x, int64_t n) {
    const float squares = sum_of(n, [&](int64_t i, auto lanes) {
        const vf v = load(x + i, lanes);
        return v * v;
    });
    const float factor = 1.0f / std::max(std::sqrt(squares), 1e-7f);
    each_vector(n, [&](int64_t i, auto lanes) { store(x + i, load(x + i, lanes) * factor, lanes); });
}

// out [n, n] = a b, which is known to be symmetric.
void symmetric(int64_t n, int64_t k, Strided<float> a, Strided<float> b, float* out, int threads) {
    each_stretch(n, n <= 256 ? few_rows : some_rows, threads, [&](int64_t first, int64_t count) {
        const Strided<float> some{a.data + first * a.row, a.row, a.column};
        gemm(count, std::min(n, gemm_parts::up(first + count, W)), k, some, b, out + first * n, n, false);
    });
    for (int64_t i = 0; i < n; i += 8) {  // to the last bit, so that a matrix and its transpose get the same result
        const int64_t end = std::min(n, i + 8);
        transpose(end - i, i, out + i * n, n, out + i, n);
        for (int64_t r = i; r < end; ++r)
            for (int64_t c = i; c < r; ++c) out[c * n + r] = out[r * n + c];
    }
}

void square_product(int64_t n, const float* a, const float* b, float* out, int threads) {
    symmetric(n, n, {a, n, 1}, {b, n, 1}, out, threads);
}

// A of x; `turned` is memory of the size of x.
void find_gram(const float* x, Shape shape, float* turned, float* gram, int threads) {
    const int64_t n = shape.side(), k = shape.length();
    if (shape.tall()) return symmetric(n, k, {x, 1, n}, {x, n, 1}, gram, threads);
    transpose(n, k, x, k, turned, n);
    symmetric(n, k, {x, k, 1}, {turned, n, 1}, gram, threads);
}

// Squares [n, n] to work in.
struct Squares {
    float *gram, *total, *factor, *spare;
};

// So many steps for A in `gram`: the product of their factors in `total`.
void iterate(int64_t n, int steps, const Quintic& by, Squares& s, int threads) {
    for (int step = 0; step < steps; ++step) {
        square_product(n, s.gram, s.gram, s.factor, threads);
        each_vector(n * n, [&](int64_t i, auto lanes) {
            store(s.factor + i, load(s.gram + i, lanes) * by.b + load(s.factor + i, lanes) * by.c, lanes);
        });
        for (int64_t i = 0; i < n; ++i) s.factor[i * n + i] += by.a;
        if (step + 1 < steps) {
            square_product(n, s.factor, s.gram, s.spare, threads);
            square_product(n, s.factor, s.spare, s.gram, threads);
        }
        if (step > 0) square_product(n, s.factor, s.total, s.spare, threads);
        std::swap(s.total, step > 0 ? s.spare : s.factor);
    }
}

// out = Q x, or x Q of a tall one.
void apply(const float* q, const float* x, Shape shape, float* out, int threads) {
    const int64_t n = shape.side(), columns = shape.columns;
    const float *left = shape.tall() ? x : q, *right = shape.tall() ? q : x;
    each_stretch(shape.rows, threads > 1 ? some_rows : shape.rows, threads, [&](int64_t first, int64_t count) {
        gemm(count, columns, n, Strided<float>{left + first * n, n, 1}, Strided<float>{right, columns, 1},
             out + first * columns, columns, false);
    });
}

void orthogonalise(float* x, Shape shape, const Quintic& by, int threads) {
    const int64_t square = gemm_parts::up(shape.side() * shape.side(), 16);
    float* work = static_cast<float*>(scratch((4 * square + shape.size()) * sizeof(float), slot_work));
    Squares squares{work, work + square, work + 2 * square, work + 3 * square};
    float *now = x, *next = work + 4 * square;
    normalise(x, shape.size());
    for (int left = by.steps; left > 0; left -= together) {
        find_gram(now, shape, next, squares.gram, threads);
        iterate(shape.side(), std::min(left, together), by, squares, threads);
        apply(squares.total, now, shape, next, threads);
        std::swap(now, next);
    }
    if (now != x) std::copy_n(now, shape.size(), x);
}

// body(i, threads) for every matrix, the longest first.
template <class F>
void each_matrix(const std::vector<int64_t>& work, int threads, F&& body) {
    std::vector<int64_t> order(work.size());
    int64_t all = 0, first = 0;
    for (size_t i = 0; i < order.size(); ++i) order[i] = int64_t(i), all += work[i];
    std::sort(order.begin(), order.end(),
              [&](int64_t i, int64_t j) { return std::pair(-work[i], i) < std::pair(-work[j], j); });
    for (; first < int64_t(order.size()) && work[order[first]] * threads > all; ++first) body(order[first], threads);
    parallel_for(int64_t(order.size()) - first, threads, [&](int64_t i) { body(order[first + i], 1); });
}

// A parameter as Python hands it over: a stack of matrices [rows, columns], what they are multiplied by and how far
// along the new direction they go.
struct Parameter {
    float* weights;
    const float* gradients;
    float* momentum;
    int64_t count, rows, columns;
    float keep, rate;
};

// Rounds as torch's `lerp` and `add` do, with which ranks that share a matrix do the same.
void muon_step(const Parameter& p, int64_t number, float fresh, float old_share, const Quintic& by, int threads) {
    const Shape shape{p.rows, p.columns};
    const int64_t place = number * shape.size();
    float *w = p.weights + place, *m = p.momentum + place;
    const float* g = p.gradients + place;
    float* update = static_cast<float*>(scratch(shape.size() * sizeof(float), slot_update));
    each_stretch(shape.size(), some_numbers, threads, [&](int64_t first, int64_t count) {
        each_vector(count, [&](int64_t at, auto lanes) {
            const int64_t i = first + at;
            const vf gradient = load(g + i, lanes), old = load(m + i, lanes);
            const vf now = fma(gradient - old, broadcast(fresh), old);
            store(m + i, now, lanes);
            store(update + i, fma(gradient - now, broadcast(1.0f - old_share), now), lanes);
        });
    });
    orthogonalise(update, shape, by, threads);
    each_stretch(shape.size(), some_numbers, threads, [&](int64_t first, int64_t count) {
        each_vector(count, [&](int64_t at, auto lanes) {
            const int64_t i = first + at;
            store(w + i, fma(load(update + i, lanes), broadcast(p.rate), load(w + i, lanes) * p.keep), lanes);
        });
    });
}

}  // namespace
}  // namespace seqloom

using namespace seqloom;

extern "C" void seqloom_orthogonalise(float* matrices, int64_t count, int64_t rows, int64_t columns, float a, float b,
                                      float c, int32_t steps, int32_t threads) {
    const Shape shape{rows, columns};
    each_matrix(std::vector<int64_t>(count, shape.work()), threads, [&](int64_t i, int some) {
        orthogonalise(matrices + i * shape.size(), shape, {a, b, c, steps}, some);
    });
}

// Muon's step of many parameters, all contiguous; `fresh` and `old_share` are what a gradient and the momentum before
// count in the new one.
extern "C" void seqloom_muon_step(const Parameter* parameters, int64_t count, float fresh, float old_share, float a,
                                  float b, float c, int32_t steps, int32_t threads) {
    struct Place {
        const Parameter* parameter;
        int64_t number;
    };
    std::vector<Place> places;
    std::vector<int64_t> work;
    for (const Parameter* p = parameters; p < parameters + count; ++p)
        for (int64_t i = 0; i < p->count; ++i)
            places.push_back({p, i}), work.push_back(Shape{p->rows, p->columns}.work());
    each_matrix(work, threads, [&](int64_t i, int some) {
        muon_step(*places[i].parameter, places[i].number, fresh, old_share, {a, b, c, steps}, some);
    });
}
