// Random numbers for stochastic rounding, row by row of a strip, bit for bit those of numerics/philox.py.
//
// Sixteen numbers along the contraction axis share a counter. Where that axis runs down the rows, the words of sixteen
// rows are made at once and kept; where it runs along a row, they are turned into the order of its numbers.
#pragma once

#include "magnitudes.h"
#include "philox.h"

namespace seqloom {

// Numbers for one row: bits `shift` and up of words, as many as `mask` has.
struct Draws {
    const uint32_t* words;
    int shift;
    uint32_t mask;
    float unit;

    [[gnu::always_inline]] vf uniform(int64_t j) const {
        vu word;
        std::memcpy(&word, words + j, sizeof word);
        return __builtin_convertvector((vi)((word >> shift) & mask), vf) * unit;
    }
};

// Where the numbers of a strip come from. `down`: the contraction axis runs down the rows.
class Random {
public:
    Random(int bits, uint64_t key, bool down, int64_t contraction)
        : bits_(bits), key_(key), down_(down), groups_(ceiling(contraction, group)) {}

    bool wanted() const { return bits_ > 0; }
    int64_t words(int64_t columns) const {
        return !wanted() ? 0 : down_ ? group * padded(columns) : padded(columns) + group * W;
    }

    // Numbers for a row of a strip; `words` keeps those of sixteen rows where one counter serves them.
    Draws of_row(int64_t row, int64_t first_row, int64_t column, int64_t columns, uint32_t* words) const {
        const float unit = bits_ == 8 ? 0x1p-8f : 0x1p-24f;
        if (!down_) {
            along(row, column, columns, words);
            return {words, bits_ == 8 ? 0 : 8, bits_ == 8 ? 0xffu : 0xffffffu, unit};
        }
        const int64_t apart = padded(columns), place = row % group;
        if (place == 0 || row == first_row) down(row / group, column, columns, words);
        if (bits_ == 8) return {words + place / 4 * apart, int(place % 4 * 8), 0xffu, unit};
        return {words + place * apart, 8, 0xffffffu, unit};
    }

private:
    // Words [calls][4] for the counters first + lane * step.
    [[gnu::always_inline]] void call(int64_t first, int64_t step, vu* words) const {
        vu low, high;
        for (int lane = 0; lane < W; ++lane) {
            const uint64_t counter = uint64_t(first + lane * step);
            low[lane] = uint32_t(counter);
            high[lane] = uint32_t(counter >> 32);
        }
        if (bits_ == 8) return philox(key_, low, high, 0, words);
        for (int i = 0; i < 4; ++i) philox(key_, low, high, 1 + i, words + 4 * i);
    }

    void down(int64_t block, int64_t column, int64_t columns, uint32_t* out) const {
        const int64_t apart = padded(columns);
        const int count = bits_ == 8 ? 4 : 16;
        for (int64_t j = 0; j < columns; j += W) {
            vu words[group];
            call((column + j) * groups_ + block, groups_, words);
            for (int i = 0; i < count; ++i) std::memcpy(out + i * apart + j, &words[i], sizeof(vu));
        }
    }

    // One word for each number: a byte of a word, or all of one.
    void along(int64_t row, int64_t column, int64_t columns, uint32_t* out) const {
        const int count = bits_ == 8 ? 4 : 16;
        for (int64_t j = 0; j < columns; j += group * W) {
            vu words[group];
            call(row * groups_ + (column + j) / group, 1, words);
            uint32_t turned[group * W];
            for (int lane = 0; lane < W; ++lane)
                for (int i = 0; i < count; ++i) turned[lane * count + i] = words[i][lane];
            if (bits_ == 8)
                for (int i = 0; i < group; ++i)
                    widen(reinterpret_cast<const uint8_t*>(turned) + i * W, out + j + i * W);
            else
                std::memcpy(out + j, turned, sizeof turned);
        }
    }

    [[gnu::always_inline]] static void widen(const uint8_t* bytes, uint32_t* to) {
        typedef uint8_t vb __attribute__((vector_size(W)));
        vb narrow;
        std::memcpy(&narrow, bytes, sizeof narrow);
        const vu wide = __builtin_convertvector(narrow, vu);
        std::memcpy(to, &wide, sizeof wide);
    }

    int bits_;
    uint64_t key_;
    bool down_;
    int64_t groups_;
};

}  // namespace seqloom
