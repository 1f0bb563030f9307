// Rows of x as 16-bit integers, so that their products with integer weights are integers: exact, in any order.
//
// A stretch of 32 numbers has one scale, the power of two with which its largest number takes all 16 bits. An error is
// at most 2^-15 of that largest number; a BF16 number is kept exactly unless it is more than 2^7 times smaller than the
// largest. A stretch with a number that is not finite has the scale NaN.
//
// Rows meet panels.h in tiles. A tile lies stretch by stretch: sixteen times the pairs of its rows, then the scales of
// its rows.
#pragma once

#include "panels.h"

namespace seqloom {

// m rows in as few tiles of at most so many rows as can be, of about the same size.
struct Tiles {
    int64_t m, count;

    Tiles(int64_t m, int64_t most) : m(m), count((m + most - 1) / most) {}
    int64_t first(int64_t tile) const { return m * tile / count; }
    int64_t of(int64_t row) const { return ((row + 1) * count - 1) / m; }
};

constexpr int64_t stretch_words = stretch / 2 + 1;  // of a row

namespace fixed_point_parts {

// Rounds to the nearest, ties to even, at most to the largest.
template <class T>
float fix(const T* x, int16_t (&to)[stretch]) {
    constexpr float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number
    constexpr int parts = stretch / W;
    vf numbers[parts];
    vi largest{};
    for (int part = 0; part < parts; ++part) {
        numbers[part] = load(x + part * W);
        const vi bits = (vi)abs(numbers[part]);
        largest = bits > largest ? bits : largest;
    }
    int32_t bits = 0;
    for (int lane = 0; lane < W; ++lane) bits = std::max(bits, largest[lane]);
    if (bits >= 0x7f800000) {
        std::fill_n(to, stretch, int16_t{0});
        return NAN;
    }
    const int32_t exponent = std::max(bits >> 23, 24);  // below, the inverse would be no number
    const int32_t of_scale = (exponent - 14) << 23, of_inverse = (268 - exponent) << 23;
    float scale, inverse;
    std::memcpy(&scale, &of_scale, sizeof scale);
    std::memcpy(&inverse, &of_inverse, sizeof inverse);
    typedef int16_t Shorts __attribute__((vector_size(W * 2)));
    for (int part = 0; part < parts; ++part) {
        const vi whole = (vi)(numbers[part] * inverse + magic) - (vi)broadcast(magic);
        const Shorts shorts = __builtin_convertvector(whole > 32767 ? vi{} + 32767 : whole, Shorts);
        std::memcpy(to + part * W, &shorts, sizeof shorts);
    }
    return scale;
}

}  // namespace fixed_point_parts

// Row i in its tile, where integer_rows.h looks for it; all take as many words as there are rows for every word of one.
template <class T>
void fix_row(const T* x, int64_t i, const Tiles& tiles, int64_t k, float* to) {
    const int64_t tile = tiles.of(i), first = tiles.first(tile), apart = tiles.first(tile + 1) - first;
    to += first * stretches_of(k) * stretch_words + (i - first);
    for (int64_t at = 0; at < k; at += stretch, to += stretch_words * apart) {
        alignas(64) int16_t codes[stretch];
        float words[stretch_words];
        if (k - at >= stretch) {
            words[stretch / 2] = fixed_point_parts::fix(x + at, codes);
        } else {
            T rest[stretch] = {};
            std::copy(x + at, x + k, rest);
            words[stretch / 2] = fixed_point_parts::fix(rest, codes);
        }
        std::memcpy(words, codes, sizeof codes);
        for (int64_t word = 0; word < stretch_words; ++word) std::memcpy(to + word * apart, words + word, sizeof *to);
    }
}

}  // namespace seqloom
