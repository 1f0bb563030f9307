// Matrix product on one core: C = A B or C += A B, all arithmetic in FP32.
//
// A and B may be stored with any strides (a transpose is a swap of strides), in float or bf16. A tile of C that fills
// the registers runs down the inner dimension; operands are packed into panels so that the tile reads both in order,
// and blocks are cut so that a panel of B stays in the first cache and a block of A in the second.
//
// An element of C is always the same sum in the same order: k is cut into equal blocks by k alone, a block is one chain
// of fused multiply-adds from zero, blocks are added in turn. So a row does not depend on how many others there are.
// The cut is that of Goto and van de Geijn, Anatomy of High-Performance Matrix Multiplication (2008).
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "simd.h"
#include "threads.h"

namespace seqloom {

// Element (i, j) lies at data[i * row + j * column].
template <class E>
struct Strided {
    const E* data;
    int64_t row, column;
};

namespace gemm_parts {

#if defined(__AVX512F__)
constexpr int kRows = 14, kVectors = 2;  // 28 of 32 registers hold the tile
#elif defined(__aarch64__)
constexpr int kRows = 8, kVectors = 3;  // 24 of 32
#else
constexpr int kRows = 6, kVectors = 2;  // 12 of 16
#endif
constexpr int kColumns = kVectors * W;
constexpr int64_t kInner = 384;                    // k of a block at most
constexpr int64_t kBlockRows = 24 * kRows;         // rows of A packed at a time
constexpr int64_t kBlockColumns = 128 * kColumns;  // columns of B packed at a time
constexpr int kSlotA = 0, kSlotB = 1;              // scratch of this thread

typedef float eight __attribute__((vector_size(32)));
typedef uint16_t eight_u16 __attribute__((vector_size(16)));
typedef int32_t eight_i32 __attribute__((vector_size(32)));
typedef uint32_t eight_u32 __attribute__((vector_size(32)));

inline float widen(float x) { return x; }

inline float widen(bf16 x) {
    const uint32_t bits = uint32_t{x.bits} << 16;
    float out;
    std::memcpy(&out, &bits, sizeof out);
    return out;
}

inline eight load_eight(const float* x) {
    eight out;
    std::memcpy(&out, x, sizeof out);
    return out;
}

inline eight load_eight(const bf16* x) {
    eight_u16 half;
    std::memcpy(&half, x, sizeof half);
    return (eight)(__builtin_convertvector(half, eight_u32) << 16);
}

// R rows and V vectors of C over `k` steps. Row i of A lies at a + i * a_row, step p of both at p * step.
template <int R, int V>
void tile(int64_t k, const float* a, int64_t a_row, int64_t a_step, const float* b, int64_t b_step, float* c,
          int64_t ldc, bool accumulate) {
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i)
        for (int at = 0; at < V * W; at += 16) __builtin_prefetch(c + i * ldc + at, 1);
    vf sum[R][V];
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i)
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) sum[i][v] = vf{};
    for (int64_t p = 0; p < k; ++p) {
        vf right[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) right[v] = load(b + v * W);
#pragma GCC unroll 16
        for (int i = 0; i < R; ++i) {
            const vf left = a[i * a_row] - vf{};  // minus zero: exact, and nothing is computed
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v) sum[i][v] = fma(left, right[v], sum[i][v]);
        }
        a += a_step;
        b += b_step;
    }
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i, c += ldc)
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) {
            vf out = sum[i][v];
            if (accumulate) out += load(c + v * W);
            store(c + v * W, out);
        }
}

// The tile for as many rows and vectors as there are.
template <int V, int R = kRows>
void tile_of(int rows, int64_t k, const float* a, int64_t a_row, int64_t a_step, const float* b, int64_t b_step,
             float* c, int64_t ldc, bool accumulate) {
    if constexpr (R > 1)
        if (rows < R) return tile_of<V, R - 1>(rows, k, a, a_row, a_step, b, b_step, c, ldc, accumulate);
    tile<R, V>(k, a, a_row, a_step, b, b_step, c, ldc, accumulate);
}

template <int V = kVectors>
void tile_of(int rows, int columns, int64_t k, const float* a, int64_t a_row, int64_t a_step, const float* b,
             int64_t b_step, float* c, int64_t ldc, bool accumulate) {
    if constexpr (V > 1)
        if (columns <= (V - 1) * W)
            return tile_of<V - 1>(rows, columns, k, a, a_row, a_step, b, b_step, c, ldc, accumulate);
    if (columns == V * W) return tile_of<V>(rows, k, a, a_row, a_step, b, b_step, c, ldc, accumulate);
    float whole[kRows * kColumns];
    tile_of<V>(rows, k, a, a_row, a_step, b, b_step, whole, kColumns, false);
    for (int i = 0; i < rows; ++i)
        for (int j = 0; j < columns; ++j)
            c[i * ldc + j] = accumulate ? c[i * ldc + j] + whole[i * kColumns + j] : whole[i * kColumns + j];
}

#if defined(__clang__) || __GNUC__ >= 12
#define SEQLOOM_SHUFFLE(x, y, ...) __builtin_shufflevector(x, y, __VA_ARGS__)
#else
#define SEQLOOM_SHUFFLE(x, y, ...) __builtin_shuffle(x, y, eight_i32{__VA_ARGS__})
#endif

inline void transpose_eight(eight x[8]) {
    eight y[8];
    for (int i = 0; i < 8; i += 2) {
        y[i] = SEQLOOM_SHUFFLE(x[i], x[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
        y[i + 1] = SEQLOOM_SHUFFLE(x[i], x[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; ++j) {
            x[i + 2 * j] = SEQLOOM_SHUFFLE(y[i + j], y[i + j + 2], 0, 1, 8, 9, 4, 5, 12, 13);
            x[i + 2 * j + 1] = SEQLOOM_SHUFFLE(y[i + j], y[i + j + 2], 2, 3, 10, 11, 6, 7, 14, 15);
        }
    for (int i = 0; i < 4; ++i) {
        y[i] = SEQLOOM_SHUFFLE(x[i], x[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
        y[i + 4] = SEQLOOM_SHUFFLE(x[i], x[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
    }
    std::memcpy(x, y, sizeof y);
}
#undef SEQLOOM_SHUFFLE

// A panel: out[p * P + i] = element (i, p) of `x` for i < P, p < k. Lines from `lines` on repeat the last one.
template <int P, class E>
void pack_panel(Strided<E> x, int lines, int64_t k, float* out) {
    constexpr int kBlocks = (P + 7) / 8;
    const E* line[kBlocks * 8];
    for (int i = 0; i < kBlocks * 8; ++i) line[i] = x.data + std::min(i, lines - 1) * x.row;
    int64_t p = 0;
    if (x.column == 1)
        for (; p + 8 <= k; p += 8) {
            if (p % (64 / sizeof(E)) == 0)
                for (int i = 0; i < P; ++i) __builtin_prefetch(line[i] + P * x.row + p);  // for the next panel
            eight block[kBlocks][8];
            for (int h = 0; h < kBlocks; ++h) {
                for (int i = 0; i < 8; ++i) block[h][i] = load_eight(line[h * 8 + i] + p);
                transpose_eight(block[h]);
            }
            // Ascending: where P is no multiple of 8, what a store writes too much is written over by the next.
            for (int q = 0; q < 8; ++q)
                for (int h = 0; h < kBlocks; ++h) std::memcpy(out + (p + q) * P + h * 8, &block[h][q], sizeof(eight));
        }
    for (; p < k; ++p)
        for (int i = 0; i < P; ++i) out[p * P + i] = widen(line[i][p * x.column]);
}

// Panels whose lines lie side by side: a row of the source is read at a stretch and dealt out to all of them.
template <int P, class E>
void pack_side_by_side(Strided<E> x, int panels, int64_t k, float* out) {
    for (int64_t p = 0; p < k; ++p) {
        const E* source = x.data + p * x.column;
        for (int i = 0; i < panels * P; i += 64 / int(sizeof(E))) __builtin_prefetch(source + 8 * x.column + i);
        for (int h = 0; h < panels; ++h)
            for (int i = 0; i < P; ++i) out[(h * k + p) * P + i] = widen(source[h * P + i]);
    }
}

// All panels of `lines` lines, one behind the other. `out` has room for 8 floats more.
template <int P, class E>
void pack(Strided<E> x, int64_t lines, int64_t k, float* out) {
    constexpr int kTogether = (64 + P - 1) / P;
    int64_t i = 0;
    if (x.row == 1)
        for (int64_t left; (left = (lines - i) / P) > 0;) {
            const int panels = int(std::min<int64_t>(left, kTogether));
            pack_side_by_side<P>(Strided<E>{x.data + i, 1, x.column}, panels, k, out + i * k);
            i += panels * P;
        }
    for (; i < lines; i += P)
        pack_panel<P>(Strided<E>{x.data + i * x.row, x.row, x.column}, int(std::min<int64_t>(P, lines - i)), k,
                      out + i * k);
}

inline int64_t up(int64_t x, int64_t multiple) { return (x + multiple - 1) / multiple * multiple; }

// Equal blocks of k: their length depends on k alone.
inline int64_t inner_block(int64_t k) { return up((k + up(k, kInner) / kInner - 1) / (up(k, kInner) / kInner), 8); }

inline const float* as_float(const float* x) { return x; }
inline const float* as_float(const bf16*) { return nullptr; }  // never read where it lies

// Where the panels of a block begin: line i of an operand at data + i * line, within a panel line i at i * near, step p
// at p * step.
struct Panels {
    const float* data;
    int64_t line, near, step;
};

// One block of A against one of B, whose columns are left where they lie up to `unpacked`.
inline void block_product(int64_t rows, int64_t columns, int64_t unpacked, int64_t steps, Panels a, Panels b,
                          Panels packed_b, float* c, int64_t ldc, bool accumulate) {
    for (int64_t j = 0; j < columns; j += kColumns) {
        const Panels& from = j < unpacked ? b : packed_b;
        const float* next = packed_b.data + (j + kColumns) * steps;  // the panel after this one comes closer bit by bit
        const int64_t part = up(steps * kColumns * kRows / rows, 16);
        for (int64_t i = 0; i < rows; i += kRows, next += part) {
            for (int64_t q = 0; q < part; q += 16) __builtin_prefetch(next + q, 0, 2);
            tile_of(int(std::min<int64_t>(kRows, rows - i)), int(std::min<int64_t>(kColumns, columns - j)), steps,
                    a.data + i * a.line, a.near, a.step, from.data + j * from.line, from.step, c + i * ldc + j, ldc,
                    accumulate);
        }
    }
}

// Whether FP32 operands are read where they lie: if few tiles read them, or if they stay in the second cache and have a
// stride that the tile can walk down. Measured; the result is the same.
inline bool leave_a(int64_t m, int64_t n, int64_t k, Strided<float> a) {
    if (n <= 4 * kColumns) return true;
    return (a.column == 1 && n <= 40 * kColumns && m * k <= 1 << 18) ||
           (a.row == 1 && n <= 16 * kColumns && m * k <= 1 << 17);
}
inline bool leave_b(int64_t m, int64_t n, int64_t k, Strided<float> b) {
    return b.column == 1 && (m <= 4 * kRows || (m <= 512 && n * k <= 1 << 17));
}
inline bool leave_a(int64_t, int64_t, int64_t, Strided<bf16>) { return false; }
inline bool leave_b(int64_t, int64_t, int64_t, Strided<bf16>) { return false; }

}  // namespace gemm_parts

// C [m, n] = A [m, k] B [k, n], or C += A B; row i of C lies at c + i * ldc.
template <class A, class B>
void gemm(int64_t m, int64_t n, int64_t k, Strided<A> a, Strided<B> b, float* c, int64_t ldc, bool accumulate) {
    using namespace gemm_parts;
    if (m <= 0 || n <= 0) return;
    if (k <= 0) {
        if (!accumulate)
            for (int64_t i = 0; i < m; ++i) std::fill_n(c + i * ldc, n, 0.0f);
        return;
    }
    const int64_t block = inner_block(k);
    const int64_t block_rows = std::min(kBlockRows, up(m, kRows));
    const int64_t block_columns = std::min(kBlockColumns, up(n, kColumns));
    const bool there_a = leave_a(m, n, k, a), there_b = leave_b(m, n, k, b);
    float* left = static_cast<float*>(scratch((block_rows * block + 8) * sizeof(float), kSlotA));
    float* right = static_cast<float*>(scratch((block_columns * block + 8) * sizeof(float), kSlotB));
    for (int64_t j = 0; j < n; j += block_columns) {
        const int64_t columns = std::min(block_columns, n - j);
        const int64_t unpacked = there_b ? columns / kColumns * kColumns : 0;  // a narrow last panel is packed
        for (int64_t p = 0; p < k; p += block) {
            const int64_t steps = std::min(block, k - p);
            const B* b_corner = b.data + p * b.row + j * b.column;
            pack<kColumns>(Strided<B>{b_corner + unpacked * b.column, b.column, b.row}, columns - unpacked, steps,
                           right + unpacked * steps);
            for (int64_t i = 0; i < m; i += block_rows) {
                const int64_t rows = std::min(block_rows, m - i);
                const A* a_corner = a.data + i * a.row + p * a.column;
                if (!there_a) pack<kRows>(Strided<A>{a_corner, a.row, a.column}, rows, steps, left);
                const Panels panels_a = there_a ? Panels{as_float(a_corner), a.row, a.row, a.column}
                                                : Panels{left, steps, 1, kRows};
                const Panels packed_b{right, steps, 1, kColumns};
                const Panels panels_b = there_b ? Panels{as_float(b_corner), 1, 1, b.row} : packed_b;
                block_product(rows, columns, unpacked, steps, panels_a, panels_b, packed_b, c + i * ldc + j, ldc,
                              accumulate || p > 0);
            }
        }
    }
}

}  // namespace seqloom
