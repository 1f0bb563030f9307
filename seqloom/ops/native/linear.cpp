// C = A B or C += A B on several threads, for operands and results in FP32 or BF16; see gemm.h.
//
// C is cut into tiles, and B is packed once for all of them. An element is the same sum whatever tile it is in, so the
// cut may follow the number of threads and the result does not. BF16 results are summed in FP32 and rounded once.
#include "gemm.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace seqloom {
namespace {

constexpr int64_t shares = 4;                // tiles for each thread, since cores are never equally fast
constexpr int64_t least_side = 96;           // of a tile; smaller ones spend their time on packing
constexpr int64_t most_rounded = 512 * 512;  // elements of a tile that is rounded, which is summed elsewhere
constexpr int64_t most_packed = 1 << 22;     // numbers of B that are packed for all tiles together
constexpr int slot_sums = 2, slot_packed = 3;

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

// B packed once for tiles below each other, as `gemm` packs it for each alone.
template <class B>
class Packed {
public:
    Packed(int64_t n, int64_t k, Strided<B> b, const Cut& cut, int threads)
        : k_(k), block_(gemm_parts::inner_block(k)), blocks_((k + block_ - 1) / block_),
          apart_(gemm_parts::up(cut.columns, gemm_parts::kColumns) * block_ + 16),
          data_(static_cast<float*>(scratch(cut.across * blocks_ * apart_ * sizeof(float), slot_packed))) {
        parallel_for(cut.across * blocks_, threads, [=](int64_t task) {
            const int64_t j = task / blocks_ * cut.columns, p = task % blocks_ * block_;
            const Strided<B> corner{b.data + p * b.row + j * b.column, b.column, b.row};
            gemm_parts::pack<gemm_parts::kColumns>(corner, std::min(cut.columns, n - j), std::min(block_, k_ - p),
                                                   data_ + task * apart_);
        });
    }

    // As `gemm` of one tile, the `across`th of its row.
    template <class A>
    void multiply(int64_t m, int64_t n, Strided<A> a, int64_t across, float* c, int64_t ldc, bool accumulate) const {
        using namespace gemm_parts;
        const int64_t block_rows = std::min(kBlockRows, up(m, kRows));
        const bool there = leave_a(m, n, k_, a);
        float* left = static_cast<float*>(scratch((block_rows * block_ + 8) * sizeof(float), kSlotA));
        for (int64_t part = 0; part < blocks_; ++part) {
            const int64_t p = part * block_, steps = std::min(block_, k_ - p);
            const Panels right{data_ + (across * blocks_ + part) * apart_, steps, 1, kColumns};
            for (int64_t i = 0; i < m; i += block_rows) {
                const int64_t rows = std::min(block_rows, m - i);
                const A* corner = a.data + i * a.row + p * a.column;
                if (!there) pack<kRows>(Strided<A>{corner, a.row, a.column}, rows, steps, left);
                const Panels panels = there ? Panels{as_float(corner), a.row, a.row, a.column}
                                            : Panels{left, steps, 1, kRows};
                block_product(rows, n, 0, steps, panels, right, right, c + i * ldc, ldc, accumulate || p > 0);
            }
        }
    }

private:
    int64_t k_, block_, blocks_, apart_;
    float* data_;
};

// multiply(rows, columns, left side, right side, number of the tile in its row, where it is summed, apart) for every tile.
template <class A, class B, class F>
void each_tile(int64_t m, int64_t n, const Cut& cut, Strided<A> a, Strided<B> b, void* c, int64_t ldc, bool rounded,
               int threads, F&& multiply) {
    parallel_for(cut.down * cut.across, threads, [&](int64_t task) {
        const int64_t across = task % cut.across, i = task / cut.across * cut.rows, j = across * cut.columns;
        const int64_t rows = std::min(cut.rows, m - i), columns = std::min(cut.columns, n - j);
        const Strided<A> left{a.data + i * a.row, a.row, a.column};
        const Strided<B> right{b.data + j * b.column, b.row, b.column};
        if (!rounded) return multiply(rows, columns, left, right, across, static_cast<float*>(c) + i * ldc + j, ldc);
        float* sums = static_cast<float*>(scratch(rows * columns * sizeof(float), slot_sums));
        multiply(rows, columns, left, right, across, sums, columns);
        for (int64_t r = 0; r < rows; ++r) {
            bf16* to = static_cast<bf16*>(c) + (i + r) * ldc + j;
            int64_t at = 0;
            for (; at + W <= columns; at += W) store(to + at, load(sums + r * columns + at));
            if (at < columns) store(to + at, load(sums + r * columns + at, columns - at), columns - at);
        }
    });
}

template <class A, class B>
void product(int64_t m, int64_t n, int64_t k, Strided<A> a, Strided<B> b, void* c, int64_t ldc, bool rounded,
             bool accumulate, int threads) {
    const Cut cut(m, n, threads, rounded);
    const bool alone = cut.down == 1 || k == 0 || cut.columns > gemm_parts::kBlockColumns || n * k > most_packed ||
                       gemm_parts::leave_b(cut.rows, cut.columns, k, b);
    if (alone)
        return each_tile(m, n, cut, a, b, c, ldc, rounded, threads,
                         [=](int64_t rows, int64_t columns, Strided<A> left, Strided<B> right, int64_t, float* to,
                             int64_t apart) { gemm(rows, columns, k, left, right, to, apart, !rounded && accumulate); });
    const Packed<B> packed(n, k, b, cut, threads);
    each_tile(m, n, cut, a, b, c, ldc, rounded, threads,
              [&](int64_t rows, int64_t columns, Strided<A> left, Strided<B>, int64_t across, float* to,
                  int64_t apart) { packed.multiply(rows, columns, left, across, to, apart, !rounded && accumulate); });
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
