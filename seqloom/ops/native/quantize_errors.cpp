// How far rounding moved the numbers of a matrix, block by block: the error metric of MoR; see quantize.py.
#include "magnitudes.h"

namespace seqloom {
namespace {

// Sums of |x - values scale| / |x| over the nonzero x of blocks of height x width numbers, and their counts. Stretches
// of rows are summed by themselves, then in their order.
template <class T, class U>
void relative_errors(const Numbers<const T>& x, const Numbers<const U>& values, float scale, int64_t height,
                     int64_t width, float* sums, int64_t* counts, int threads) {
    const int64_t across = ceiling(x.columns, width), pieces = ceiling(height, group);
    const int64_t tasks = ceiling(x.rows, height) * pieces;
    double* parts = static_cast<double*>(scratch(tasks * across * 2 * sizeof(double), slot_sums));
    std::fill_n(parts, tasks * across * 2, 0.0);
    parallel_for(tasks, threads, [&](int64_t task) {
        const int64_t top = task / pieces * height, first = top + task % pieces * group;
        const int64_t last = std::min({first + group, top + height, x.rows});
        for (int64_t row = first; row < last; ++row)
            for (int64_t block = 0; block < across; ++block) {
                const int64_t column = block * width;
                vi nonzero = {};
                const float sum = sum_of(std::min(width, x.columns - column), [&](int64_t i, auto lanes) {
                    const vf number = load(x.at(row, column + i), lanes);
                    const vf moved = abs(number - load(values.at(row, column + i), lanes) * scale);
                    nonzero -= (vi)(number != 0.0f);
                    return number != 0.0f ? moved / abs(number) : vf{};
                });
                double* part = parts + (task * across + block) * 2;
                part[0] += sum;
                for (int lane = 0; lane < W; ++lane) part[1] += nonzero[lane];
            }
    });
    for (int64_t block = 0; block < tasks / pieces * across; ++block) {
        double sum = 0, count = 0;
        for (int64_t piece = 0; piece < pieces; ++piece) {
            const double* part = parts + ((block / across * pieces + piece) * across + block % across) * 2;
            sum += part[0];
            count += part[1];
        }
        sums[block] = float(sum);
        counts[block] = int64_t(count);
    }
}

}  // namespace
}  // namespace seqloom

#define SEQLOOM_ERRORS(T, U, NAME)                                                                                     \
    extern "C" void seqloom_quantize_errors_##NAME(const T* x, int64_t rows, int64_t columns, int64_t apart,           \
                                                   const U* values, int64_t values_apart, const float* scale,          \
                                                   int64_t height, int64_t width, float* sums, int64_t* counts,        \
                                                   int32_t threads) {                                                  \
        seqloom::relative_errors<T, U>({x, rows, columns, apart}, {values, rows, columns, values_apart}, *scale,       \
                                       height, width, sums, counts, threads);                                          \
    }

SEQLOOM_ERRORS(float, float, f32_f32)
SEQLOOM_ERRORS(float, seqloom::bf16, f32_bf16)
SEQLOOM_ERRORS(seqloom::bf16, float, bf16_f32)
SEQLOOM_ERRORS(seqloom::bf16, seqloom::bf16, bf16_bf16)
