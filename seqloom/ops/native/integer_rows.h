// Products of rows x in fixed_point.h with the panels of a matrix w: integers within a block of w, FP32 between blocks.
//
//     y = sum over blocks of  x's scale * (w's scales * (sum of integer products))
//
// Pairs of 16-bit numbers are multiplied and added by one instruction, sixteen products at a time, and a lane is a row
// of w, so nothing is added up across lanes. The sums of a block are exact and blocks follow each other along k, so a
// row of x has the same bits among any number of others; up to eight meet unpacked codes while those are in a register.
#pragma once

#include "fixed_point.h"

namespace seqloom {

constexpr int64_t cached_bytes = 1 << 18;  // of x that are multiplied while they stay in the second cache
constexpr int64_t codes_ahead = 2048;       // bytes that are asked for before they are needed

namespace integer_rows_parts {

// The sum of the two products of 16-bit numbers in every lane.
[[gnu::always_inline]] inline Words multiply(Words a, Words b) {
#if defined(__AVX2__)
    return (Words)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#else
    return (a << 16 >> 16) * (b << 16 >> 16) + (a >> 16) * (b >> 16);
#endif
}

[[gnu::always_inline]] inline Lanes fma(Lanes a, Lanes b, Lanes c) {
#if defined(__AVX2__) && defined(__FMA__)
    return (Lanes)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__FP_FAST_FMAF)
    for (int i = 0; i < 8; ++i) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
    return c;
#else
    return a * b + c;
#endif
}

// Keeps GCC from adding up later what would then have to wait in memory.
[[gnu::always_inline]] inline void add_now([[maybe_unused]] Words& sum) {
#if defined(__AVX2__)
    asm("" : "+x"(sum));
#endif
}

// M rows of x with a panel, of which n rows are there.
template <class Weights, int M>
void tile(const float* x, Panels<Weights> w, float* y, int64_t ldy, int64_t n) {
    constexpr int words = Weights::block / Weights::group, pairs = Weights::group / 2;
    Lanes sums[M] = {};
    for (int64_t s = 0; s < w.stretches; ++s, x += stretch_words * M) {
#pragma GCC unroll 2
        for (int block = 0; block < stretch / Weights::block; ++block) {
            const float* from = x + block * (Weights::block / 2) * M;
            Words whole[M] = {};
#pragma GCC unroll 8
            for (int word = 0; word < words; ++word, w.codes += 32) {
                if (word % 2 == 0) __builtin_prefetch(w.codes + codes_ahead);
#pragma GCC unroll 4
                for (int pair = 0; pair < pairs; ++pair) {
                    const Words codes = Weights::pairs(w.codes, pair);
#pragma GCC unroll 8
                    for (int i = 0; i < M; ++i) {
                        int32_t of_x;
                        std::memcpy(&of_x, from + (word * pairs + pair) * M + i, sizeof of_x);
                        whole[i] += multiply(codes, Words{} + of_x);
                        add_now(whole[i]);
                    }
                }
            }
            const Lanes scales = Weights::scales(w.scales);
            w.scales += Weights::scale_bytes;
#pragma GCC unroll 8
            for (int i = 0; i < M; ++i)
                sums[i] = fma(__builtin_convertvector(whole[i], Lanes) * scales, Lanes{} + x[stretch / 2 * M + i],
                              sums[i]);
        }
    }
    for (int i = 0; i < M; ++i) {
        const Lanes result = sums[i] * Weights::unit;
        std::memcpy(y + i * ldy, &result, n * sizeof(float));
    }
}

template <class Weights>
void tile_of(int64_t rows, const float* x, const Panels<Weights>& w, float* y, int64_t ldy, int64_t n) {
    constexpr void (*tiles[])(const float*, Panels<Weights>, float*, int64_t, int64_t) = {
        tile<Weights, 1>, tile<Weights, 2>, tile<Weights, 3>, tile<Weights, 4>,
        tile<Weights, 5>, tile<Weights, 6>, tile<Weights, 7>, tile<Weights, 8>};
    tiles[rows - 1](x, w, y, ldy, n);
}

}  // namespace integer_rows_parts

// y [m, n] = x [m, k] w [n, k]^T on one core, for x of `fix_row`; rows of y are `ldy` apart.
template <class Weights>
void integer_rows(int64_t m, int64_t n, const float* x, const Panels<Weights>& w, float* y, int64_t ldy) {
    const int64_t width = w.stretches * stretch_words, tile_bytes = tile_rows * width * int64_t(sizeof(float));
    const int64_t cached = std::max<int64_t>(cached_bytes / std::max<int64_t>(tile_bytes, 1), 1) * tile_rows;
    for (int64_t from = 0; from < m; from += cached) {
        Panels<Weights> panel = w;
        for (int64_t j = 0; j < n; j += panel_rows, panel.skip(panel_rows))
            for (int64_t i = from; i < std::min(m, from + cached); i += tile_rows)
                integer_rows_parts::tile_of(std::min(tile_rows, m - i), x + i * width, panel, y + i * ldy + j, ldy,
                                            std::min<int64_t>(panel_rows, n - j));
    }
}

}  // namespace seqloom
