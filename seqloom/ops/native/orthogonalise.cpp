// Newton-Schulz iteration of many small matrices; see orthogonalise.py.
//
// A matrix stays in the cache of its core through all iterations; where there are fewer matrices than threads, the
// threads share the rows of one. Of symmetric products only the blocks up to the diagonal are computed.
//
// Every step multiplies X from the left by a polynomial Q of A = XXᵀ. Where X is wide, the steps are therefore taken by
// the small matrices alone, P ← QP and A ← QAQ, all of them symmetric because polynomials of one matrix commute; X is
// multiplied once, by the P of all steps. Near squares gain nothing from that and would lose digits, since A has the
// squares of the smallest singular values.
#include <algorithm>

#include "gemm.h"
#include "lanes.h"
#include "threads.h"

namespace seqloom {
namespace {

constexpr int slot_work = 4;
constexpr int64_t block = 8 * gemm_parts::kRows;  // rows of a product at a time

void scale(float* x, float factor, int64_t n) {
    each_vector(n, [&](int64_t i, auto lanes) { store(x + i, load(x + i, lanes) * factor, lanes); });
}

// To a norm of one.
void normalise(float* x, int64_t n) {
    const float squares = sum_of(n, [&](int64_t i, auto lanes) {
        const vf v = load(x + i, lanes);
        return v * v;
    });
    scale(x, 1.0f / std::max(std::sqrt(squares), 1e-7f), n);
}

// body(first, count) for every block of rows.
template <class F>
void each_block(int64_t rows, int threads, F&& body) {
    parallel_for((rows + block - 1) / block, threads, [&](int64_t task) {
        body(task * block, std::min(block, rows - task * block));
    });
}

// out = x y of x [n, k] and a y [k, n] that makes it symmetric.
void symmetric(const float* x, Strided<float> y, int64_t n, int64_t k, float* out, int threads) {
    each_block(n, threads, [&](int64_t first, int64_t count) {
        gemm(count, first + count, k, Strided<float>{x + first * k, k, 1}, y, out + first * n, n, false);
    });
    for (int64_t i = 0; i < n; ++i)
        for (int64_t j = i / block * block + block; j < n; ++j) out[i * n + j] = out[j * n + i];
}

struct Quintic {
    float a, b, c;
};

// X ← aX + (bA + cA²)X, step by step; `work` as `orthogonalise` has it. Returns where the result is.
float* iterate(float* x, int64_t rows, int64_t columns, Quintic factors, int iterations, float* work, int threads) {
    const int64_t size = rows * columns, square = rows * rows;
    float *once = work + size, *twice = once + square, *now = x, *next = work;
    for (int step = 0; step < iterations; ++step) {
        symmetric(now, Strided<float>{now, 1, columns}, rows, columns, once, threads);
        symmetric(once, Strided<float>{once, rows, 1}, rows, rows, twice, threads);
        each_vector(square, [&](int64_t i, auto lanes) {
            store(twice + i, load(once + i, lanes) * factors.b + load(twice + i, lanes) * factors.c, lanes);
        });
        each_block(rows, threads, [&](int64_t first, int64_t count) {
            float* out = next + first * columns;
            std::copy_n(now + first * columns, count * columns, out);
            scale(out, factors.a, count * columns);
            gemm(count, columns, rows, Strided<float>{twice + first * rows, rows, 1}, Strided<float>{now, columns, 1},
                 out, columns, true);
        });
        std::swap(now, next);
    }
    return now;
}

// The same for a wide X, by way of A and P.
float* iterate_wide(float* x, int64_t rows, int64_t columns, Quintic factors, int iterations, float* work,
                    int threads) {
    const int64_t square = rows * rows;
    float *gram = work + rows * columns, *all = gram + square, *factor = all + square, *spare = factor + square;
    auto multiply = [&](const float* left, const float* right, float* out) {
        symmetric(left, Strided<float>{right, rows, 1}, rows, rows, out, threads);
    };
    symmetric(x, Strided<float>{x, 1, columns}, rows, columns, gram, threads);
    for (int step = 0; step < iterations; ++step) {
        multiply(gram, gram, factor);
        each_vector(square, [&](int64_t i, auto lanes) {
            store(factor + i, load(gram + i, lanes) * factors.b + load(factor + i, lanes) * factors.c, lanes);
        });
        for (int64_t i = 0; i < rows; ++i) factor[i * rows + i] += factors.a;
        if (step == 0) {
            std::copy_n(factor, square, all);
        } else {
            multiply(factor, all, spare);
            std::swap(all, spare);
        }
        if (step + 1 == iterations) break;
        multiply(factor, gram, spare);
        multiply(factor, spare, gram);
    }
    each_block(rows, threads, [&](int64_t first, int64_t count) {
        gemm(count, columns, rows, Strided<float>{all + first * rows, rows, 1}, Strided<float>{x, columns, 1},
             work + first * columns, columns, false);
    });
    return work;
}

void orthogonalise(float* x, int64_t rows, int64_t columns, Quintic factors, int iterations, int threads) {
    const int64_t size = rows * columns;
    float* work = static_cast<float*>(scratch((size + 4 * rows * rows) * sizeof(float), slot_work));
    normalise(x, size);
    const bool wide = columns >= 2 * rows && iterations > 0;
    const float* result = (wide ? iterate_wide : iterate)(x, rows, columns, factors, iterations, work, threads);
    if (result != x) std::copy_n(result, size, x);
}

}  // namespace
}  // namespace seqloom

extern "C" void seqloom_orthogonalise(float* matrices, int64_t count, int64_t rows, int64_t columns, float a, float b,
                                      float c, int32_t iterations, int32_t threads) {
    const bool apart = count >= threads;
    seqloom::parallel_for(count, apart ? threads : 1, [&](int64_t i) {
        seqloom::orthogonalise(matrices + i * rows * columns, rows, columns, {a, b, c}, iterations, apart ? 1 : threads);
    });
}
