// Newton-Schulz iteration of many small matrices; see orthogonalise.py.
//
// A matrix stays in the cache of its core through all iterations; where there are fewer matrices than threads, the
// threads share the rows of one. Of the two symmetric products only the blocks up to the diagonal are computed.
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

// out = x xᵀ of x [n, k].
void gram(const float* x, int64_t n, int64_t k, float* out, int threads) {
    each_block(n, threads, [&](int64_t first, int64_t count) {
        gemm(count, first + count, k, Strided<float>{x + first * k, k, 1}, Strided<float>{x, 1, k}, out + first * n, n,
             false);
    });
    for (int64_t i = 0; i < n; ++i)
        for (int64_t j = i / block * block + block; j < n; ++j) out[i * n + j] = out[j * n + i];
}

struct Quintic {
    float a, b, c;
};

void orthogonalise(float* x, int64_t rows, int64_t columns, Quintic factors, int iterations, int threads) {
    const int64_t size = rows * columns, square = rows * rows;
    float* work = static_cast<float*>(scratch((size + 2 * square) * sizeof(float), slot_work));
    float *once = work + size, *twice = once + square, *now = x, *next = work;
    normalise(x, size);
    for (int step = 0; step < iterations; ++step) {
        gram(now, rows, columns, once, threads);
        gram(once, rows, rows, twice, threads);  // symmetric, so its square
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
    if (now != x) std::copy_n(now, size, x);
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
