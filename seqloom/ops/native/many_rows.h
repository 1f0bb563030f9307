// The products of few_rows.h for many rows of x, with the same bits: every number is one running vector of partial sums
// along k, so what is gained must come from where numbers are read.
//
// A block of rows of w is widened once and lies so that a tile reads it in order; it stays in the second cache while
// tiles of x, which stay in the first, run along it. Where k is long it is cut, and the vectors of partial sums are kept
// from one cut to the next.
#pragma once

#include "few_rows.h"
#include "threads.h"

namespace seqloom {

constexpr int64_t block_of_w = 16 * w_rows;  // rows widened together
constexpr int64_t block_of_x = 16 * x_rows;  // rows whose partial sums are kept
constexpr int64_t longest_cut = 1024;         // of k

namespace many_rows_parts {

constexpr int slot_wide = 0, slot_partial = 1;  // as gemm.h, in whose place this stands

// M rows of x with N widened rows of w, which lie vector by vector side by side.
template <int M, int N>
void tile(const float* x, int64_t ldx, const float* w, int64_t vectors, float* partial, bool first, bool last,
          float unit, float* y, int64_t ldy) {
    vf sums[M][N];
#pragma GCC unroll 4
    for (int i = 0; i < M; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < N; ++j) sums[i][j] = first ? vf{} : load(partial + (i * N + j) * W);
    for (int64_t v = 0; v < vectors; ++v, w += N * W, x += W) {
        vf wide[N];
#pragma GCC unroll 4
        for (int j = 0; j < N; ++j) {
            wide[j] = load(w + j * W);
            few_rows_parts::hold(wide[j]);
        }
#pragma GCC unroll 4
        for (int i = 0; i < M; ++i) {
            vf value = load(x + i * ldx);
            few_rows_parts::hold(value);
#pragma GCC unroll 4
            for (int j = 0; j < N; ++j) sums[i][j] = fma(value, wide[j], sums[i][j]);
        }
    }
    if (!last) {
#pragma GCC unroll 4
        for (int i = 0; i < M; ++i)
#pragma GCC unroll 4
            for (int j = 0; j < N; ++j) store(partial + (i * N + j) * W, sums[i][j]);
        return;
    }
    vf running[4 * x_rows] = {};
#pragma GCC unroll 4
    for (int i = 0; i < M; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < N; ++j) running[4 * i + j] = sums[i][j];
    float added[4 * x_rows];
    for (int i = 0; i < 4 * x_rows; i += W) store(added + i, few_rows_parts::sums_of(running + i) * unit);
    for (int i = 0; i < M; ++i)
        for (int j = 0; j < N; ++j) y[i * ldy + j] = added[4 * i + j];
}

using Tile = void (*)(const float*, int64_t, const float*, int64_t, float*, bool, bool, float, float*, int64_t);

template <int N>
Tile tile_of(int64_t rows) {
    return rows == 1 ? tile<1, N> : rows == 2 ? tile<2, N> : rows == 3 ? tile<3, N> : tile<4, N>;
}

inline Tile tile_of(int64_t rows, int64_t columns) {
    return columns == 1 ? tile_of<1>(rows) : columns == 2 ? tile_of<2>(rows) : columns == 3 ? tile_of<3>(rows)
                                                                                             : tile_of<4>(rows);
}

// Numbers first .. last of rows j .. j + count of the `rows` of w, vector by vector side by side. k ends a row.
template <class Weights>
void widen(const typename Weights::Rows& w, int64_t rows, int64_t j, int64_t count, int64_t first, int64_t last,
           int64_t k, float* to) {
    constexpr int parts = Weights::step / W;
    for (int64_t i = 0; i < count; ++i) {
        const typename Weights::Row row = w.row(j + i), soon = w.row(std::min(j + i + w_rows, rows - 1));
        float* place = to + i * W;
        auto put = [&](const typename Weights::Row& from, int64_t at) {
            vf wide[parts];  // all are made before any is stored, since codes may lie anywhere
#pragma GCC unroll 8
            for (int part = 0; part < parts; ++part) wide[part] = Weights::part(from, at, part);
#pragma GCC unroll 8
            for (int part = 0; part < parts; ++part, place += count * W) store(place, wide[part]);
        };
        int64_t at = first;
        for (; at + Weights::step <= std::min(last, k); at += Weights::step) {
            Weights::fetch(soon, at, 0);  // a cut is too short for what processors fetch ahead themselves
            put(row, at);
        }
        if (at < last) {
            typename Weights::Rest rest;
            put(rest.make(row, at, k), 0);
        }
    }
}

}  // namespace many_rows_parts

// y [m, n] = x [m, k] w [n, k]^T on one core; rows of x, arranged, are `ldx` apart, those of y `ldy`.
template <class Weights>
void many_rows(int64_t m, int64_t n, int64_t k, const float* x, int64_t ldx, const typename Weights::Rows& w, float* y,
               int64_t ldy) {
    using namespace many_rows_parts;
    const int64_t width = arranged_width<Weights>(k), steps = width / Weights::step;
    const int64_t cuts = std::max<int64_t>((width + longest_cut - 1) / longest_cut, 1);
    const int64_t cut = std::max<int64_t>((steps + cuts - 1) / cuts, 1) * Weights::step;
    float* wide = static_cast<float*>(scratch(block_of_w * cut * sizeof(float), slot_wide));
    float* partial = static_cast<float*>(scratch(cuts > 1 ? block_of_w * block_of_x * W * sizeof(float) : 0, slot_partial));
    for (int64_t j = 0; j < n; j += block_of_w) {
        const int64_t columns = std::min(block_of_w, n - j);
        for (int64_t i = 0; i < m; i += block_of_x) {
            const int64_t rows = std::min(block_of_x, m - i);
            for (int64_t from = 0; from == 0 || from < width; from += cut) {
                const int64_t to = std::min(from + cut, width), vectors = (to - from) / W;
                if (i == 0 || cuts > 1)
                    for (int64_t c = 0; c < columns; c += w_rows)
                        widen<Weights>(w, n, j + c, std::min<int64_t>(w_rows, columns - c), from, to, k,
                                       wide + c * (to - from));
                for (int64_t r = 0; r < rows; r += x_rows)
                    for (int64_t c = 0; c < columns; c += w_rows)
                        tile_of(std::min<int64_t>(x_rows, rows - r), std::min<int64_t>(w_rows, columns - c))(
                            x + (i + r) * ldx + from, ldx, wide + c * (to - from), vectors,
                            partial + (r * block_of_w + c * x_rows) * W, from == 0, to == width, Weights::unit,
                            y + (i + r) * ldy + j + c, ldy);
            }
        }
    }
}

}  // namespace seqloom
