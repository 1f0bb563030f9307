// Rows of SSM states in fewer bits: reading them, and rounding them after a token, bit for bit as nn/narrow.py does.
//
// Rounding leaves the rounded numbers in the FP32 rows that it is given. Codes are written only where somebody wants
// them: between tokens nobody does.
#pragma once

#include <algorithm>

#include "philox.h"
#include "ssd.h"

namespace seqloom::scan {

// The order of `FORMATS` in mamba_rows.py.
enum StateFormat { kFp32, kBf16, kFp16, kFp16Stochastic, kInt8, kInt8Stochastic, kFp8, kFp8Stochastic };

constexpr int64_t kScaleBlock = 128;  // numbers along a row that share a scale, at most

// 16 random bits for every number of a row's state, which are `first` and the following of it, [heads, width, state].
class Noise {
public:
    Noise(uint64_t key, int64_t position) : key_(key), position_(position) {}

    // How many words `fill` writes.
    static int64_t words(int64_t count) { return ((count + 7) / 8 + 1 + 2 * W) * 4; }

    // Where in `words` the bits of the first number lie; those of the others follow.
    const uint16_t* fill(int64_t first, int64_t count, uint32_t* words) const {
        const int64_t last = (first + count - 1) / 8;
        vu lane;
        for (int i = 0; i < W; ++i) lane[i] = i;
        uint32_t* to = words;
        for (int64_t group = first / 8; group <= last; group += 2 * W, to += 8 * W) {
            const vu counters[2] = {lane + uint32_t(group), lane + uint32_t(group + W)};
            vu found[2][4];
            philox<2>(key_, counters, broadcast(uint32_t(position_)), uint32_t(position_ >> 32), found);
            spread(found, to);
        }
        return reinterpret_cast<const uint16_t*>(words) + first % 8;
    }

private:
    // The four words of each counter side by side.
    static void spread(const vu (&found)[2][4], uint32_t* to) {
#if SEQLOOM_WIDTH == 8
        gemm_parts::eight block[8];
        std::memcpy(block, found, sizeof block);
        gemm_parts::transpose_eight(block);
        for (int i = 0; i < 8; ++i) {
            std::memcpy(to + 4 * i, &block[i], 16);
            std::memcpy(to + 32 + 4 * i, reinterpret_cast<const char*>(&block[i]) + 16, 16);
        }
#else
        for (int half = 0; half < 2; ++half)
            for (int i = 0; i < W; ++i)
                for (int word = 0; word < 4; ++word) to[(half * W + i) * 4 + word] = found[half][word][i];
#endif
    }

    uint64_t key_;
    int64_t position_;
};

[[gnu::always_inline]] inline vi noise_of(const uint16_t* from) {
    vh bits;
    std::memcpy(&bits, from, sizeof bits);
    return __builtin_convertvector(bits, vi);
}

[[gnu::always_inline]] inline vf as_floats(vi x) { return __builtin_convertvector(x, vf); }

// Codes of W numbers as they are stored, from and to lanes of 32 bits.
template <class Code>
[[gnu::always_inline]] inline vi load_codes(const Code* from) {
    Code codes[W];
    std::memcpy(codes, from, sizeof codes);
#if SEQLOOM_WIDTH == 8 && defined(__AVX2__)
    if (sizeof(Code) == 1) return (vi)_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes)));
    return (vi)_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes)));
#else
    vi lanes;
    for (int i = 0; i < W; ++i) lanes[i] = codes[i];
    return lanes;
#endif
}

template <class Code>
[[gnu::always_inline]] inline void store_codes(Code* to, vi lanes) {
#if SEQLOOM_WIDTH == 8 && defined(__AVX2__)
    const __m256i all = (__m256i)lanes;
    const __m128i halves = _mm_packus_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
    const __m128i codes = sizeof(Code) == 1 ? _mm_packus_epi16(halves, halves) : halves;
    std::memcpy(to, &codes, W * sizeof(Code));
#else
    for (int i = 0; i < W; ++i) to[i] = Code(lanes[i]);
#endif
}

// What a format is: the type of its codes, and how W numbers become codes and numbers again. Numbers of formats with
// scales come divided by theirs.
template <StateFormat format>
struct Codec;

// Floats of `mantissa` bits whose smallest normal number is 2^-lowest. In the bits of an FP32 number all codes of equal
// sign follow one another, so rounding it is adding to its bits: half a step, or a random part of one.
template <class Integer, int mantissa, int lowest, int noise_bits, bool is_scaled, bool is_stochastic>
struct FloatCodec {
    using Code = Integer;
    static constexpr bool scaled = is_scaled, stochastic = is_stochastic;
    static constexpr float largest = sizeof(Code) == 2 ? 65504 : 448;
    static constexpr int dropped = 23 - mantissa, sign_place = 8 * sizeof(Code) - 1;
    static constexpr int32_t below = (127 - lowest - 1) << mantissa;  // codes that FP32 has before the first of these

    [[gnu::always_inline]] static vi code(vf x, vi noise) {
        constexpr float smallest = 1.0f / (1 << lowest), step = smallest / (1 << mantissa);
        const vf magnitude = min(broadcast(largest), abs(x));  // a NaN stays one
        const vi bits = (vi)magnitude;
        vi normal, subnormal;
        if (stochastic) {
            const vi random = noise >> (16 - noise_bits);
            normal = bits + (random << (dropped - noise_bits));
            const vf moved = as_floats(random) * (step / (1 << noise_bits)) + magnitude;
            subnormal = __builtin_convertvector(moved * (1 / step), vi);
        } else {
            constexpr float shift = smallest * (1 << dropped);  // adding it rounds to whole steps
            normal = bits + ((1 << (dropped - 1)) - 1) + (bits >> dropped & 1);
            subnormal = (vi)(magnitude + shift) - (vi)broadcast(shift);
        }
        vi found = magnitude < smallest ? subnormal : (normal >> dropped) - below;
        found = found < most ? found : vi{} + most;  // a NaN, which has the greatest bits of all, becomes one
        return found | ((vi)((vu)x >> 31) << sign_place);
    }
    [[gnu::always_inline]] static vf number(vi codes) {
#if SEQLOOM_WIDTH == 8 && defined(__AVX2__) && defined(__F16C__)
        if (sizeof(Code) == 2) {
            const __m256i all = (__m256i)codes;
            return (vf)_mm256_cvtph_ps(_mm_packus_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1)));
        }
#endif
        constexpr float step = 1.0f / (1 << lowest) / (1 << mantissa);
        const vi magnitude = codes & ((1 << sign_place) - 1);
        const vf normal = (vf)((magnitude + below) << dropped);
        vf value = magnitude < 1 << mantissa ? as_floats(magnitude) * step : normal;
        value = magnitude == most ? broadcast(NAN) : value;
        return (vf)((vi)value | (vi)((vu)codes >> sign_place << 31));
    }

private:
    static constexpr int32_t most = (1 << sign_place) - 1;  // a NaN
};

template <bool stochastic>
using Fp16Codec = FloatCodec<uint16_t, 10, 14, 13, false, stochastic>;
template <bool stochastic>
using E4m3Codec = FloatCodec<uint8_t, 3, 6, 16, true, stochastic>;

template <>
struct Codec<kFp16> : Fp16Codec<false> {};
template <>
struct Codec<kFp16Stochastic> : Fp16Codec<true> {};
template <>
struct Codec<kFp8> : E4m3Codec<false> {};
template <>
struct Codec<kFp8Stochastic> : E4m3Codec<true> {};

template <>
struct Codec<kBf16> {
    using Code = uint16_t;
    static constexpr bool scaled = false, stochastic = false;

    [[gnu::always_inline]] static vi code(vf x, vi) {
        const vi bits = (vi)min(broadcast(65504.0f), max(broadcast(-65504.0f), x));  // as nn/narrow.py clamps all floats
        const vu rounded = (vu)(bits + 0x7fff + (bits >> 16 & 1)) >> 16;
        return (vi)(x == x ? rounded : broadcast(0x7fc0u));
    }
    [[gnu::always_inline]] static vf number(vi codes) { return (vf)(codes << 16); }
};

template <bool is_stochastic>
struct ByteCodec {
    using Code = uint8_t;  // of two's complements
    static constexpr bool scaled = true, stochastic = is_stochastic;
    static constexpr float largest = 127;

    [[gnu::always_inline]] static vi code(vf x, vi noise) {
        const vf clamped = min(broadcast(largest), max(broadcast(-largest), x));
        if (stochastic) {
            const vf moved = clamped + (as_floats(noise) + 0.5f) * 0x1p-16f;
            const vi towards_zero = __builtin_convertvector(moved, vi);
            const vi down = towards_zero + (vi)(as_floats(towards_zero) > moved);
            return (down < 127 ? down : vi{} + 127) & 0xff;
        }
        constexpr float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number
        return ((vi)(clamped + magic) - (vi)broadcast(magic)) & 0xff;
    }
    [[gnu::always_inline]] static vf number(vi codes) { return as_floats(codes << 24 >> 24); }
};
template <>
struct Codec<kInt8> : ByteCodec<false> {};
template <>
struct Codec<kInt8Stochastic> : ByteCodec<true> {};

inline int64_t scale_blocks(int64_t columns) { return (columns + kScaleBlock - 1) / kScaleBlock; }

// The first `count` of W codes.
template <class Code>
[[gnu::always_inline]] inline vi load_codes(const Code* from, int64_t count) {
    if (count == W) return load_codes(from);
    Code some[W] = {};
    std::copy_n(from, count, some);
    return load_codes(some);
}

template <class Code>
[[gnu::always_inline]] inline void store_codes(Code* to, vi lanes, int64_t count) {
    if (count == W) return store_codes(to, lanes);
    Code some[W];
    store_codes(some, lanes);
    std::copy_n(some, count, to);
}

// to = the numbers of a row; zero behind it up to whole vectors.
template <class C>
void widen_row(int64_t columns, const typename C::Code* codes, const float* scales, float* to) {
    by_vectors(columns, [&](int64_t n, int64_t count) {
        const vf x = C::number(load_codes(codes + n, count));
        store(to + n, C::scaled ? x * scales[n / kScaleBlock] : x);
    });
}

// Rounds a row, which is zero behind its end up to whole vectors; codes and scales are written unless they are null.
template <class C>
void round_row(int64_t columns, float* row, const uint16_t* noise, typename C::Code* codes, float* scales) {
    auto rounded = [&](int64_t n, int64_t count, vf x) __attribute__((always_inline)) {
        const vi code = C::code(x, C::stochastic ? noise_of(noise + n) : vi{});
        if (codes) store_codes(codes + n, code, count);
        return C::number(code);
    };
    if constexpr (!C::scaled) {
        by_vectors(columns, [&](int64_t n, int64_t count) { store_some(row + n, rounded(n, count, load(row + n)), count); });
    } else {
        for (int64_t first = 0; first < columns; first += kScaleBlock) {
            const int64_t size = std::min(kScaleBlock, columns - first);
            vf most = {};
            for (int64_t n = first; n < first + size; n += W) most = max(most, abs(load(row + n)));
            const float scale = std::max(max(most) / C::largest, 0x1p-126f);
            by_vectors(size, [&](int64_t n, int64_t count) {
                const vf x = load(row + first + n) / broadcast(scale);
                store_some(row + first + n, rounded(first + n, count, x) * scale, count);
            });
            if (scales) scales[first / kScaleBlock] = scale;
        }
    }
}

}  // namespace seqloom::scan
