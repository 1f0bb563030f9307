// Routed experts at inference, for matrices as they are stored: each expert's rows through its two matrices by the
// products of rows_by_matrix.h, then every token's sum in the order of its choices. So a token has the same bits among
// any neighbours, and the weights of idle experts are not touched.
#include "expert_rows.h"
#include "lanes.h"
#include "rows_by_matrix.h"

namespace seqloom {
namespace {

constexpr int64_t block_rows = 128;         // of an expert, by one task
constexpr int64_t worth_threads = 1 << 16;  // numbers in the matrices of few rows

enum Slot { arranged_slot = 4, before_slot, rows_slot };

template <class T>
T* memory(int64_t numbers, int slot) {
    return static_cast<T*>(scratch(size_t(numbers) * sizeof(T), slot));
}

// y [R, out] = x [R, in] w^T but for the multiplier; `row(i)` is row i of x.
template <class T, class Row>
void through(int64_t R, int64_t out, int64_t in, const Matrix& w, const Row& row, float* y) {
    with_weights<T>(w, in, in, [&](auto format, const auto& rows) {
        using Weights = decltype(format);
        float* arranged = memory<float>(R * width_of_row<Weights>(in), arranged_slot);
        for (int64_t i = 0; i < R; ++i) arrange_row<Weights>(row(i), i, R, in, arranged);
        rows_by_matrix<Weights>(R, out, in, arranged, rows, y, out);
    });
}

template <class T>
void forward(const Sizes& sizes, const Sorted& sorted, const T* x, const float* weights, const Matrix* up,
             const Matrix* down, float* outputs, T* y, int threads) {
    const int64_t I = sizes.I, F = sizes.F;
    const std::vector<Rows> blocks = blocks_of_all(sorted, sizes.E, block_rows);
    const bool alone = sizes.rows() * I * F < worth_threads;
    parallel_for(int64_t(blocks.size()), alone ? 1 : threads, [&](int64_t task) {
        const Rows& rows = blocks[task];
        const int64_t R = rows.count();
        const Matrix &in = up[rows.expert], &out = down[rows.expert];
        float *before = memory<float>(R * F, before_slot), *to = outputs + rows.first * I;
        through<T>(R, F, I, in, [&](int64_t i) { return x + sorted.order[rows.first + i] / sizes.K * I; }, before);
        each_vector(R * F, [&](int64_t i, auto lanes) {
            T held[W];  // as T holds what comes before the activation
            store(held, load(before + i, lanes) * in.multiplier);
            const vf active = max(vf{}, load(held));
            store(before + i, active * active, lanes);
        });
        through<T>(R, I, F, out, [&](int64_t i) { return before + i * F; }, to);
        each_vector(R * I, [&](int64_t i, auto lanes) { store(to + i, load(to + i, lanes) * out.multiplier, lanes); });
    });
    sum_by_token(outputs, weights, sorted, sizes, y, alone ? 1 : threads);
}

}  // namespace
}  // namespace seqloom

// Tokens x and y [S, I], choices and their weights [S, K], E matrices up [F, I] and down [I, F]; `work` is there to sort
// in, see `sort` for its size and what it tells, `outputs` [S K, I] to work in.
#define SEQLOOM_EXPERTS_STORED(T, NAME)                                                                               \
    extern "C" void seqloom_experts_stored_##NAME(                                                                    \
        const T* x, const int64_t* chosen, const float* weights, const seqloom::Matrix* up,                           \
        const seqloom::Matrix* down, int32_t* work, float* outputs, T* y, int64_t S, int64_t K, int64_t E, int64_t I, \
        int64_t F, int32_t threads) {                                                                                 \
        const seqloom::Sizes sizes{S, K, E, I, F};                                                                    \
        seqloom::Sorted sorted;                                                                                       \
        if (sort(chosen, sizes, work, &sorted))                                                                       \
            seqloom::forward(sizes, sorted, x, weights, up, down, outputs, y, threads);                               \
    }

SEQLOOM_EXPERTS_STORED(float, f32)
SEQLOOM_EXPERTS_STORED(seqloom::bf16, bf16)
