// Weights in few bits as integers, eight rows of w side by side.
//
//     int8     codes, an FP16 scale for every 32 along k
//     nvfp4    E2M1 codes, an E4M3 scale for every 16
//
// A panel is eight rows, filled up with zeros, of whole stretches of 32 numbers along k. Its codes lie in groups of
// eight 32-bit words, word j of row j, in the order of k; so a vector holds what all rows have at the same places, and
// a panel is one stream of memory. A word has four numbers as bytes in the order 0, 2, 1, 3, from which two operations
// make pairs of 16-bit numbers; of nvfp4 these are the lower halves of bytes, and the upper halves hold the next four.
// Scales follow each other likewise, eight at a time.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "simd.h"

namespace seqloom {

constexpr int panel_rows = 8;  // of w
constexpr int stretch = 32;    // numbers along k

typedef int32_t Words __attribute__((vector_size(32)));
typedef int16_t Pairs __attribute__((vector_size(32)));
typedef float Lanes __attribute__((vector_size(32)));

inline int64_t stretches_of(int64_t k) { return (k + stretch - 1) / stretch; }

// The panels of a matrix [n, k], codes and scales.
template <class Weights>
struct Panels {
    const uint8_t *codes, *scales;
    int64_t stretches;  // in a row

    Panels(const void* codes, const void* scales, int64_t k)
        : codes(static_cast<const uint8_t*>(codes)),
          scales(static_cast<const uint8_t*>(scales)),
          stretches(stretches_of(k)) {}
    int64_t panel_codes() const { return stretches * (stretch / Weights::group * 32); }  // bytes of one panel
    int64_t panel_scales() const { return stretches * (stretch / Weights::block * Weights::scale_bytes); }
    void skip(int64_t rows) {  // whole panels of them
        codes += rows / panel_rows * panel_codes();
        scales += rows / panel_rows * panel_scales();
    }
};

inline float half_to_float(uint16_t half) {
    const uint32_t sign = uint32_t{half & 0x8000u} << 16, exponent = half >> 10 & 31, mantissa = half & 0x3ff;
    const uint32_t bits = exponent == 31 ? 0x7f800000u | mantissa << 13 : (exponent + 112) << 23 | mantissa << 13;
    float magnitude;
    std::memcpy(&magnitude, &bits, sizeof magnitude);
    if (exponent == 0) magnitude = float(mantissa) * 0x1p-24f;
    return sign ? -magnitude : magnitude;
}

inline Lanes halves_to_floats(const uint16_t (&halves)[8]) {
#if defined(__F16C__)
    return (Lanes)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(halves)));
#else
    Lanes floats;
    for (int i = 0; i < 8; ++i) floats[i] = half_to_float(halves[i]);
    return floats;
#endif
}

// A format: numbers of a word, numbers of a scale, bytes of eight scales, and what a product of codes and scales as
// they are read has to be multiplied with; how many rows of x at most meet a panel, and two panels, while codes are in
// registers (measured). `pairs` gives numbers 2 i and 2 i + 1 of every word.

struct Int8 {
    using Rows = Panels<Int8>;
    static constexpr int group = 4, block = 32, scale_bytes = 16, tile_rows = 4, rows_of_two = 4;
    static constexpr float unit = 1;

    [[gnu::always_inline]] static Words pairs(const uint8_t* codes, int i) {
        Pairs bytes;
        std::memcpy(&bytes, codes, sizeof bytes);
        return (Words)(i ? bytes >> 8 : bytes << 8 >> 8);
    }
    [[gnu::always_inline]] static Lanes scales(const uint8_t* from) {
        uint16_t halves[8];
        std::memcpy(halves, from, sizeof halves);
        return halves_to_floats(halves);
    }
};

// Codes count 2^9 times as much, in the upper byte of 16 bits, which costs nothing where all others are zero; scales
// 2^-8, since the same bits are an FP16 number so much smaller, but for NaN, which no matrix holds.
struct Nvfp4 {
    using Rows = Panels<Nvfp4>;
    static constexpr int group = 8, block = 16, scale_bytes = 8, tile_rows = 8, rows_of_two = 2;
    static constexpr float unit = 0.5f;

    [[gnu::always_inline]] static Words pairs(const uint8_t* codes, int i) {
        Words bytes;
        std::memcpy(&bytes, codes, sizeof bytes);
        bytes = (i < 2 ? bytes : (Words)((Pairs)bytes >> 4)) & 0x0f0f0f0f;
#if defined(__AVX2__)
        const __m256i table = _mm256_broadcastsi128_si256(
            _mm_setr_epi8(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12));
        const Words twice = (Words)_mm256_shuffle_epi8(table, (__m256i)bytes);
#else
        constexpr int8_t table[] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
        int8_t each[32];
        std::memcpy(each, &bytes, sizeof each);
        for (int8_t& code : each) code = table[code];
        Words twice;
        std::memcpy(&twice, each, sizeof each);
#endif
        return i % 2 ? twice & int32_t(0xff00ff00) : (Words)((Pairs)twice << 8);
    }
    [[gnu::always_inline]] static Lanes scales(const uint8_t* from) {
#if defined(__F16C__)
        const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
        const __m128i halves = _mm_srai_epi16(_mm_unpacklo_epi8(_mm_setzero_si128(), bytes), 1);
        return (Lanes)_mm256_cvtph_ps(_mm_and_si128(halves, _mm_set1_epi16(int16_t(0xbfff))));
#else
        uint16_t halves[8];
        for (int i = 0; i < 8; ++i) halves[i] = uint16_t((from[i] & 0x80) << 8 | (from[i] & 0x7f) << 7);
        return halves_to_floats(halves);
#endif
    }
};

}  // namespace seqloom
