// y = x W^T for rows x against weights as they are stored: few rows at the speed of reading W, many at that of the
// cores' arithmetic, and a row with the same bits among any number; see rows_by_matrix.h.
#include "lanes.h"
#include "rows_by_matrix.h"
#include "threads.h"

namespace seqloom {
namespace {

constexpr int64_t task_numbers = 1 << 17;   // of weights: long streams, and enough tasks for some threads
constexpr int64_t worth_threads = 1 << 15;  // of weights
constexpr int64_t of_streams = 24;          // rows of w, which fill streams by 3 and by 4
constexpr int64_t of_panels = 16;           // rows of w, which fill two panels
constexpr int64_t arranged_numbers = 1 << 13;  // of x, by one task
constexpr int64_t most_rows = 512;          // arranged at a time

// Rows of w for a task that reads them while few rows of x wait: as many for every task, none much smaller.
int64_t even_share(int64_t n, int64_t k, int64_t multiple, int threads) {
    const int64_t least = n * k > worth_threads ? 2 * threads : 1;
    const int64_t tasks = std::max((n * k + task_numbers - 1) / task_numbers, least);
    return std::max<int64_t>((n + tasks * multiple - 1) / (tasks * multiple), 1) * multiple;
}

// x [m, k] and y [m, n] are contiguous.
template <class T>
void product(const T* x, const Matrix& matrix, T* y, int64_t m, int64_t n, int64_t k, int64_t ldw, int32_t threads) {
    with_weights<T>(matrix, k, ldw, [&](auto format, const auto& w) {
        using Weights = decltype(format);
        const int64_t share_of_rows = std::max<int64_t>(arranged_numbers / std::max<int64_t>(k, 1), 1);
        const int64_t share = m > few<Weights> ? block_of_w
                                               : even_share(n, k, in_panels<Weights> ? of_panels : of_streams, threads);
        const float by = matrix.multiplier;
        for (int64_t first_row = 0; first_row < m; first_row += most_rows) {
            const int64_t rows = std::min(most_rows, m - first_row);
            float* arranged = static_cast<float*>(scratch(rows * width_of_row<Weights>(k) * sizeof(float), 4));
            parallel_for((rows + share_of_rows - 1) / share_of_rows, threads, [=](int64_t task) {
                for (int64_t row = task * share_of_rows; row < std::min(rows, (task + 1) * share_of_rows); ++row)
                    arrange_row<Weights>(x + (first_row + row) * k, row, rows, k, arranged);
            });
            parallel_for((n + share - 1) / share, threads, [=](int64_t task) {
                const int64_t first = task * share, count = std::min(share, n - first);
                auto part = w;
                part.skip(first);
                float* sums = static_cast<float*>(scratch(rows * count * sizeof(float), 5));
                rows_by_matrix<Weights>(rows, count, k, arranged, part, sums, count);
                for (int64_t row = 0; row < rows; ++row) {
                    T* to = y + (first_row + row) * n + first;
                    each_vector(count, [&](int64_t i, auto lanes) {
                        store(to + i, load(sums + row * count + i, lanes) * by, lanes);
                    });
                }
            });
        }
    });
}

}  // namespace
}  // namespace seqloom

// x and y are FP32 or BF16; the rows of a matrix of plain numbers are `ldw` apart, those of a packed one follow each
// other.
#define SEQLOOM_MATVEC(T, NAME)                                                                                      \
    extern "C" void seqloom_matvec_##NAME(const T* x, const seqloom::Matrix* w, T* y, int64_t m, int64_t n, int64_t k, \
                                          int64_t ldw, int32_t threads) {                                            \
        seqloom::product(x, *w, y, m, n, k, ldw, threads);                                                           \
    }

SEQLOOM_MATVEC(float, f32)
SEQLOOM_MATVEC(seqloom::bf16, bf16)
