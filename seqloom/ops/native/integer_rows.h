// Products of rows x in fixed_point.h with the panels of a matrix w: integers within a block of w, FP32 between blocks.
//
//     y = sum over stretches of  x's scale * (sum over blocks of  w's scales * (sum of integer products))
//
// Pairs of 16-bit numbers are multiplied and added by one instruction, sixteen products at a time, and a lane is a row
// of w, so nothing is added up across lanes. The sums of a block are exact and blocks follow each other along k, so a
// row of x has the same bits among any number of others; some meet unpacked codes while those are in a register, and a
// number of x two panels, which lie far apart, so that each is a stream of its own.
#pragma once

#include "fixed_point.h"

namespace seqloom {

constexpr int64_t cached_bytes = 1 << 18;  // of x that are multiplied while they stay in the second cache
constexpr int64_t codes_ahead = 2048;      // bytes that are asked for before they are needed

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

// M rows of x with P panels, of which n rows are there; panels lie `apart`, their numbers of y `y_apart`. Alone, since
// what is around it would take its registers.
template <class Weights, int M, int P>
[[gnu::noinline]] void tile(const float* x, Panels<Weights> w, int64_t apart, float* y, int64_t ldy, int64_t y_apart,
                            int64_t n) {
    constexpr int words = Weights::block / Weights::group, pairs = Weights::group / 2;
    const int64_t codes_apart = apart * w.panel_codes(), scales_apart = apart * w.panel_scales();
    Lanes sums[M][P] = {};
    for (int64_t s = 0; s < w.stretches; ++s, x += stretch_words * M) {
        Lanes before[M][P];  // the stretch's other block
#pragma GCC unroll 2
        for (int block = 0; block < stretch / Weights::block; ++block) {
            const float* from = x + block * (Weights::block / 2) * M;
            Words whole[M][P] = {};
#pragma GCC unroll 8
            for (int word = 0; word < words; ++word, w.codes += 32) {
#pragma GCC unroll 2
                for (int p = 0; p < P; ++p)
                    if (word % 2 == 0) __builtin_prefetch(w.codes + p * codes_apart + codes_ahead);
#pragma GCC unroll 4
                for (int pair = 0; pair < pairs; ++pair) {
                    Words codes[P];
#pragma GCC unroll 2
                    for (int p = 0; p < P; ++p) codes[p] = Weights::pairs(w.codes + p * codes_apart, pair);
#pragma GCC unroll 8
                    for (int i = 0; i < M; ++i) {
                        int32_t of_x;
                        std::memcpy(&of_x, from + (word * pairs + pair) * M + i, sizeof of_x);
#pragma GCC unroll 2
                        for (int p = 0; p < P; ++p) {
                            whole[i][p] += multiply(codes[p], Words{} + of_x);
                            add_now(whole[i][p]);
                        }
                    }
                }
            }
            Lanes scales[P];
#pragma GCC unroll 2
            for (int p = 0; p < P; ++p) scales[p] = Weights::scales(w.scales + p * scales_apart);
            w.scales += Weights::scale_bytes;
#pragma GCC unroll 8
            for (int i = 0; i < M; ++i)
#pragma GCC unroll 2
                for (int p = 0; p < P; ++p) {
                    const Lanes number = __builtin_convertvector(whole[i][p], Lanes);
                    const Lanes now = block == 0 ? number * scales[p] : fma(number, scales[p], before[i][p]);
                    if (block + 1 < stretch / Weights::block) before[i][p] = now;
                    else sums[i][p] = fma(now, x[stretch / 2 * M + i] - Lanes{}, sums[i][p]);  // "- 0" is no operation
                }
        }
    }
    for (int i = 0; i < M; ++i)
        for (int p = 0; p < P; ++p) {
            const Lanes result = sums[i][p] * Weights::unit;
            std::memcpy(y + i * ldy + p * y_apart, &result, n * sizeof(float));
        }
}

template <class Weights, int P, int M>
void tile_of(int64_t rows, const float* x, const Panels<Weights>& w, int64_t apart, float* y, int64_t ldy,
             int64_t y_apart, int64_t n) {
    if constexpr (M > 1)
        if (rows < M) return tile_of<Weights, P, M - 1>(rows, x, w, apart, y, ldy, y_apart, n);
    tile<Weights, M, P>(x, w, apart, y, ldy, y_apart, n);
}

}  // namespace integer_rows_parts

// y [m, n] = x [m, k] w [n, k]^T on one core, for x of `fix_row`; rows of y are `ldy` apart.
template <class Weights>
void integer_rows(int64_t m, int64_t n, const float* x, const Panels<Weights>& w, float* y, int64_t ldy) {
    using namespace integer_rows_parts;
    const Tiles tiles{m, Weights::tile_rows};
    const int64_t width = w.stretches * stretch_words, tile_bytes = Weights::tile_rows * width * int64_t(sizeof(float));
    const int64_t cached = std::max<int64_t>(cached_bytes / std::max<int64_t>(tile_bytes, 1), 1);
    const bool pairs = std::min(m, int64_t{Weights::tile_rows}) <= Weights::rows_of_two;
    const int64_t apart = pairs ? n / panel_rows / 2 : 0, last_pair = apart * panel_rows;
    for (int64_t from = 0; from < tiles.count; from += cached) {
        auto each_tile = [&](auto&& use) {
            for (int64_t t = from; t < std::min(tiles.count, from + cached); ++t)
                use(tiles.first(t + 1) - tiles.first(t), x + tiles.first(t) * width, y + tiles.first(t) * ldy);
        };
        Panels<Weights> panel = w;
        int64_t j = 0;
        for (; j < last_pair; j += panel_rows, panel.skip(panel_rows))
            each_tile([&](int64_t rows, const float* tile_x, float* to) {
                tile_of<Weights, 2, Weights::rows_of_two>(rows, tile_x, panel, apart, to + j, ldy, last_pair,
                                                          panel_rows);
            });
        panel.skip(last_pair);
        for (j += last_pair; j < n; j += panel_rows, panel.skip(panel_rows)) {
            const int64_t there = std::min<int64_t>(panel_rows, n - j);
            each_tile([&](int64_t rows, const float* tile_x, float* to) {
                tile_of<Weights, 1, Weights::tile_rows>(rows, tile_x, panel, 0, to + j, ldy, 0, there);
            });
        }
    }
}

}  // namespace seqloom
