// C = A B or C += A B on several threads, for operands and results in FP32 or BF16; see gemm.h.
//
// C is cut into tiles. An element is the same sum whatever tile it is in, so the cut may follow the number of threads
// and the result does not. BF16 results are summed in FP32 and rounded once.
#include "gemm.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace seqloom {
namespace {

constexpr int64_t shares = 4;                // tiles for each thread, since cores are never equally fast
constexpr int64_t least_side = 96;           // of a tile; smaller ones spend their time on packing
constexpr int64_t most_rounded = 512 * 512;  // elements of a tile that is rounded, which is summed elsewhere
constexpr int slot_sums = 2;

struct Cut {
    int64_t rows, columns, down, across;  // size of a tile, and how many there are

    Cut(int64_t m, int64_t n, int threads, bool rounded) : rows(m), columns(n) {
        for (;;) {
            down = (m + rows - 1) / rows, across = (n + columns - 1) / columns;
            const bool few = threads > 1 && down * across < shares * threads;
            const bool large = rounded && rows * columns > most_rounded;
            if (!(few || large) || std::max(rows, columns) < 2 * least_side) return;
            if (rows >= columns)
                rows = gemm_parts::up((rows + 1) / 2, gemm_parts::kRows);
            else
                columns = gemm_parts::up((columns + 1) / 2, gemm_parts::kColumns);
        }
    }
};

template <class A, class B>
void product(int64_t m, int64_t n, int64_t k, Strided<A> a, Strided<B> b, void* c, int64_t ldc, bool rounded,
             bool accumulate, int threads) {
    const Cut cut(m, n, threads, rounded);
    parallel_for(cut.down * cut.across, threads, [=](int64_t task) {
        const int64_t i = task / cut.across * cut.rows, j = task % cut.across * cut.columns;
        const int64_t rows = std::min(cut.rows, m - i), columns = std::min(cut.columns, n - j);
        const Strided<A> left{a.data + i * a.row, a.row, a.column};
        const Strided<B> right{b.data + j * b.column, b.row, b.column};
        if (!rounded) {
            float* to = static_cast<float*>(c) + i * ldc + j;
            gemm(rows, columns, k, left, right, to, ldc, accumulate);
            return;
        }
        float* sums = static_cast<float*>(scratch(rows * columns * sizeof(float), slot_sums));
        gemm(rows, columns, k, left, right, sums, columns, false);
        for (int64_t r = 0; r < rows; ++r) {
            bf16* to = static_cast<bf16*>(c) + (i + r) * ldc + j;
            int64_t at = 0;
            for (; at + W <= columns; at += W) store(to + at, load(sums + r * columns + at));
            if (at < columns) store(to + at, load(sums + r * columns + at, columns - at), columns - at);
        }
    });
}

}  // namespace
}  // namespace seqloom

using namespace seqloom;

// A [m, k], B [k, n] with any strides; rows of C [m, n] are `ldc` apart. Only an FP32 C can be accumulated to.
#define SEQLOOM_PRODUCT(name, A, B)                                                                                   \
    extern "C" void seqloom_product_##name(                                                                           \
        int64_t m, int64_t n, int64_t k, const A* a, int64_t a_row, int64_t a_column, const B* b, int64_t b_row,      \
        int64_t b_column, void* c, int64_t ldc, int32_t rounded, int32_t accumulate, int32_t threads) {               \
        product(m, n, k, Strided<A>{a, a_row, a_column}, Strided<B>{b, b_row, b_column}, c, ldc, rounded, accumulate, \
                threads);                                                                                             \
    }

SEQLOOM_PRODUCT(f32_f32, float, float)
SEQLOOM_PRODUCT(f32_bf16, float, bf16)
SEQLOOM_PRODUCT(bf16_f32, bf16, float)
SEQLOOM_PRODUCT(bf16_bf16, bf16, bf16)

// Whether torch's FP32 products are the faster ones here: MKL knows Intel's processors best, and on ARM torch calls
// what has not been measured against (Accelerate alone reaches the matrix units of Apple's).
extern "C" void seqloom_torch_multiplies_faster(int32_t* answer) {
    *answer = 1;
#if defined(__x86_64__)
    unsigned level, vendor[3] = {};
    __get_cpuid(0, &level, &vendor[0], &vendor[2], &vendor[1]);
    *answer = std::memcmp(vendor, "GenuineIntel", sizeof vendor) == 0;
#endif
}
