// Products of a few rows x with the rows of a large matrix w, each number a dot product along memory that is read once.
//
// Some rows of w are read side by side, and every number of w meets all rows of x while it is in a register. Each dot
// product is one running vector of partial sums, added up at the end: the same operations in the same order whatever the
// number of rows on either side; many_rows.h does the same for many. As many running vectors as have lanes are added up
// together. Rows that are read side by side lie far apart, so that each belongs to a stream of its own that runs on from
// row to row, which is what processors fetch ahead. BF16 is widened in pairs, the two numbers of a 32-bit word at a time,
// which needs no shuffling once x lies in that order too: even places, odd places.
#pragma once

#include <algorithm>
#include <type_traits>

#include "simd.h"

namespace seqloom {

constexpr int x_rows = 4;               // of x at a time
constexpr int w_rows = W == 8 ? 3 : 4;  // of w then, so that all sums stay in the registers, 16 or 32 of them
constexpr int64_t most_together = 8;    // rows of x that meet a row of w while it is in the first cache
constexpr int ahead_bytes = 1024;       // that are asked for before they are needed

// The rows of a matrix of plain numbers, `ld` apart.
template <class T>
struct PlainRows {
    const T* data;
    int64_t ld;
    const T* row(int64_t j) const { return data + j * ld; }
    void skip(int64_t rows) { data += rows * ld; }
};

// How w is read: `step` numbers at a time, as step / W vectors, and how the numbers of x that meet them lie. `rest` makes
// a step of the numbers from `at` to k, zeros behind them. Where `packed`, the vectors of a step are best made together.
// Numbers come `unit` times too small. `lean_part` is `part` in one register, for tiles that need all others.
template <class T>
struct Plain {
    using Rows = PlainRows<T>;
    using Row = const T*;
    static constexpr bool packed = false;
    static constexpr float unit = 1;
    static void fetch(Row row, int64_t at, int ahead) {
        __builtin_prefetch(reinterpret_cast<const char*>(row + at) + ahead);
    }
    template <int step>
    struct Rest {
        T numbers[step] = {};
        Row make(Row row, int64_t at, int64_t k) {
            std::copy(row + at, row + k, numbers);
            return numbers;
        }
    };
};

struct Fp32 : Plain<float> {
    static constexpr int step = W;
    using Rest = Plain::Rest<step>;
    static vf part(Row row, int64_t at, int) { return load(row + at); }
    static vf lean_part(Row row, int64_t at, int) { return load(row + at); }
    template <class T>
    static void arrange(const T* x, float* to) {
        store(to, load(x));
    }
};

// FP32 as BF16 would have kept it.
struct RoundedToBf16 : Fp32 {
    static vf part(Row row, int64_t at, int) {
        vu bits = (vu)load(row + at);
        return (vf)((bits + 0x7fffu + ((bits >> 16) & 1u)) & 0xffff0000u);
    }
};

struct Bf16 : Plain<bf16> {
    static constexpr int step = 2 * W;
    using Rest = Plain::Rest<step>;
    static vf part(Row row, int64_t at, int odd) {
        vu words;
        std::memcpy(&words, row + at, sizeof words);
        return odd ? (vf)(words & 0xffff0000u) : (vf)(words << 16);
    }
#if SEQLOOM_WIDTH == 8 && defined(__AVX__)
    // GCC would keep the words from one part to the other, and the mask.
    static vf lean_part(Row row, int64_t at, int odd) {
        typedef uint32_t words __attribute__((vector_size(4 * W), aligned(2), may_alias));
        alignas(4 * W) static constexpr uint32_t upper[W] = {~0xffffu, ~0xffffu, ~0xffffu, ~0xffffu,
                                                             ~0xffffu, ~0xffffu, ~0xffffu, ~0xffffu};
        if (!odd) return part(row, at, odd);
        vf wide;
        asm("vmovups %1, %0\n\tvandps %2, %0, %0"
            : "=&x"(wide)
            : "m"(*reinterpret_cast<const words*>(row + at)), "m"(*reinterpret_cast<const words*>(upper)));
        return wide;
    }
#else
    static vf lean_part(Row row, int64_t at, int odd) { return part(row, at, odd); }
#endif
    static void arrange(const bf16* x, float* to) {
        store(to, part(x, 0, 0));
        store(to + W, part(x, 0, 1));
    }
    static void arrange(const float* x, float* to) {
        for (int i = 0; i < step; ++i) to[i % 2 * W + i / 2] = x[i];
    }
};

template <class Weights>
int64_t arranged_width(int64_t k) {
    return (k + Weights::step - 1) / Weights::step * Weights::step;
}

// A row of x in the order of `Weights`, in whole steps, zeros at the end.
template <class Weights, class T>
void arrange(const T* x, int64_t k, float* to) {
    constexpr int step = Weights::step;
    int64_t at = 0;
    for (; at + step <= k; at += step) Weights::arrange(x + at, to + at);
    if (at == k) return;
    T rest[step] = {};
    std::copy(x + at, x + k, rest);
    Weights::arrange(rest, to + at);
}

namespace few_rows_parts {

// Keeps a vector in its register, where GCC would rather read it from memory once more for every product.
inline void hold([[maybe_unused]] vf& x) {
#if defined(__x86_64__) && ((SEQLOOM_WIDTH == 8 && defined(__AVX__)) || (SEQLOOM_WIDTH == 16 && defined(__AVX512F__)))
    asm("" : "+x"(x));
#endif
}

// The sums of W vectors, each added up by halves as `sum` does.
inline vf sums_of(const vf* of) {
#if SEQLOOM_WIDTH == 8 && defined(__AVX__)
    auto quarters = [&](int i) {  // of vectors i and i + 4, each in a half of its own
        const __m256 a = (__m256)of[i], b = (__m256)of[i + 4];
        return _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
    };
    auto pairs = [&](int i) {
        const __m256d a = _mm256_castps_pd(quarters(i)), b = _mm256_castps_pd(quarters(i + 1));
        return _mm256_add_ps(_mm256_castpd_ps(_mm256_unpacklo_pd(a, b)), _mm256_castpd_ps(_mm256_unpackhi_pd(a, b)));
    };
    const __m256 a = pairs(0), b = pairs(2);
    return (vf)_mm256_add_ps(_mm256_shuffle_ps(a, b, 0x88), _mm256_shuffle_ps(a, b, 0xdd));
#else
    vf result;
    for (int i = 0; i < W; ++i) result[i] = sum(of[i]);
    return result;
#endif
}

// The running vectors of M rows of x with N rows of w; those of one row of x lie W apart from each other.
template <class Weights, int M, int N>
void tile(const float* x, int64_t ldx, const typename Weights::Row (&w)[N], int64_t k, vf* to) {
    using Row = typename Weights::Row;
    constexpr int step = Weights::step;
    constexpr bool lean = M > 1 && !Weights::packed && !std::is_same_v<Weights, RoundedToBf16>;
    vf sums[M][N] = {};
    auto meet = [&](const float* values, const Row(&weights)[N], int64_t at) {
        if constexpr (Weights::packed) {
#pragma GCC unroll 4
            for (int j = 0; j < N; ++j)
#pragma GCC unroll 8
                for (int part = 0; part < step / W; ++part) {
                    vf wide = Weights::part(weights[j], at, part);
#pragma GCC unroll 4
                    for (int i = 0; i < M; ++i) sums[i][j] = fma(load(values + i * ldx + part * W), wide, sums[i][j]);
                }
        } else {
#pragma GCC unroll 2
            for (int part = 0; part < step / W; ++part) {
                vf wide[N];
#pragma GCC unroll 4
                for (int j = 0; j < N; ++j) {
                    if constexpr (lean) hold(wide[j] = Weights::lean_part(weights[j], at, part));
                    else wide[j] = Weights::part(weights[j], at, part);
                }
#pragma GCC unroll 4
                for (int i = 0; i < M; ++i) {
                    vf value = load(values + i * ldx + part * W);
                    if (lean) hold(value);
#pragma GCC unroll 4
                    for (int j = 0; j < N; ++j) sums[i][j] = fma(value, wide[j], sums[i][j]);
                }
            }
        }
    };
    int64_t whole = k / step * step;
    for (int64_t at = 0; at < whole; at += step) {
#pragma GCC unroll 4
        for (int j = 0; j < N; ++j) Weights::fetch(w[j], at, ahead_bytes);
        meet(x + at, w, at);
    }
    if (whole < k) {
        typename Weights::Rest rests[N];
        Row made[N];
        for (int j = 0; j < N; ++j) made[j] = rests[j].make(w[j], whole, k);
        meet(x + whole, made, 0);
    }
#pragma GCC unroll 4
    for (int i = 0; i < M; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < N; ++j) to[(i * N + j) * W] = sums[i][j];
}

// At most `most_together` rows of x with `count` times N rows of w, from row j on; rows of a stream follow each other.
template <class Weights, int N>
void strip(int64_t m, const float* x, int64_t ldx, const typename Weights::Rows& w, int64_t j, int64_t count, int64_t k,
           float* y, int64_t ldy, int64_t apart) {
    vf running[most_together * N * W];
    for (int64_t c = 0; c < count; ++c) {
        typename Weights::Row rows[N];
        for (int i = 0; i < N; ++i) rows[i] = w.row(j + c + i * apart);
        int64_t done = 0;
        if (m > x_rows) tile<Weights, x_rows, N>(x, ldx, rows, k, running + c), done = x_rows;
        const float* from = x + done * ldx;
        vf* to = running + done * N * W + c;
        switch (m - done) {
            case 1: tile<Weights, 1, N>(from, ldx, rows, k, to); break;
            case 2: tile<Weights, 2, N>(from, ldx, rows, k, to); break;
            case 3: tile<Weights, 3, N>(from, ldx, rows, k, to); break;
            default: tile<Weights, x_rows, N>(from, ldx, rows, k, to);
        }
    }
    for (int64_t i = 0; i < m; ++i)
        for (int64_t s = 0; s < N; ++s) {
            const vf sums = sums_of(running + (i * N + s) * W) * Weights::unit;
            float* place = y + i * ldy + j + s * apart;
            if (count == W) store(place, sums);
            else store(place, sums, count);
        }
}

}  // namespace few_rows_parts

// y [m, n] = x [m, k] w [n, k]^T; rows of x, arranged, are `ldx` apart, those of y `ldy`.
template <class Weights>
void few_rows(int64_t m, int64_t n, int64_t k, const float* x, int64_t ldx, const typename Weights::Rows& w, float* y,
              int64_t ldy) {
    using namespace few_rows_parts;
    int64_t done = 0;
    auto in_streams = [&](auto streams) {
        constexpr int N = decltype(streams)::value;
        const int64_t apart = (n - done) / N;
        for (int64_t j = done; j < done + apart; j += W)
            for (int64_t i = 0; i < m; i += most_together)
                strip<Weights, N>(std::min(most_together, m - i), x + i * ldx, ldx, w, j,
                                  std::min<int64_t>(W, done + apart - j), k, y + i * ldy, ldy, apart);
        done += N * apart;
    };
    constexpr int together = Weights::packed ? 2 : w_rows;  // unpacking needs registers of its own
    if (m < (Weights::packed ? 2 : x_rows)) in_streams(std::integral_constant<int, 4>{});
    in_streams(std::integral_constant<int, together>{});
    in_streams(std::integral_constant<int, 1>{});
}

}  // namespace seqloom
