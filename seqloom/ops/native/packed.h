// How few_rows.h reads weights in few bits: unpacked in registers, exactly, as code times scale.
//
//     int8    codes [n, k], an FP16 scale for every 32 along k
//     fp8     E4M3 codes [n, k]
//     nvfp4   E2M1 codes [n, k / 2], the even one in the low half of a byte; an E4M3 scale for every 16 along k
//
// All products code times scale fit FP32. What a number of a matrix means does not depend on the processor; which numbers
// share a vector does. NVFP4 is unpacked by table, 64 or 128 codes together: with AVX2 into the two bytes of BF16, whose
// pairs are then taken apart as in few_rows.h; with AVX-512 into FP32 at once. What crosses the halves of a register is
// left to loads, for which it costs nothing: the unit that else does it takes as long as two products.
#pragma once

#include <array>
#include <limits>

#include "few_rows.h"
#include "fp8.h"

namespace seqloom {

// A row of codes, with its scales.
template <class Code, class Scale>
struct PackedRow {
    const Code* codes;
    const Scale* scales;
};

// The rows of a matrix, so many codes and scales apart.
template <class Code, class Scale>
struct PackedRows {
    const Code* codes;
    int64_t codes_apart;
    const Scale* scales;
    int64_t scales_apart;
    PackedRow<Code, Scale> row(int64_t j) const {
        return {codes + j * codes_apart, scales + j * scales_apart};
    }
    void skip(int64_t rows) {
        codes += rows * codes_apart;
        scales += rows * scales_apart;
    }
};

template <class Weights, class CodeType, class ScaleType, int numbers_of_code, int numbers_of_scale>
struct Packed {
    using Code = CodeType;
    using Scale = ScaleType;
    using Rows = PackedRows<Code, Scale>;
    using Row = PackedRow<Code, Scale>;
    static constexpr bool packed = true;

    static Rows rows(const void* codes, const void* scales, int64_t k) {
        return {static_cast<const Code*>(codes), codes_of(k), static_cast<const Scale*>(scales), scales_of(k)};
    }
    static void fetch(const Row& row, int64_t at, int ahead) {
        __builtin_prefetch(row.codes + at / numbers_of_code + ahead);
    }
    static constexpr int64_t codes_of(int64_t k) { return (k + numbers_of_code - 1) / numbers_of_code; }
    static constexpr int64_t scales_of(int64_t k) {
        return numbers_of_scale ? (k + numbers_of_scale - 1) / numbers_of_scale : 0;
    }

    template <int step>
    struct Rest {
        Code codes[codes_of(step)] = {};
        Scale scales[scales_of(step) + 1] = {};
        Row make(const Row& row, int64_t at, int64_t k) {
            std::copy(row.codes + codes_of(at), row.codes + codes_of(k), codes);
            if (numbers_of_scale) std::copy(row.scales + scales_of(at), row.scales + scales_of(k), scales);
            return {codes, scales};
        }
    };

    static constexpr float unit = 1;

    template <class T>
    static void arrange(const T* x, float* to) {
        float wide[Weights::step];
        for (int i = 0; i < Weights::step; i += W) store(wide + i, load(x + i));
        for (int part = 0; part < Weights::step / W; ++part)
            for (int lane = 0; lane < W; ++lane) to[part * W + lane] = wide[Weights::place(part, lane)];
    }
};

inline float half_to_float(uint16_t half) {
#if defined(__F16C__)
    return _cvtsh_ss(half);
#else
    const uint32_t sign = uint32_t{half & 0x8000u} << 16, exponent = half >> 10 & 31, mantissa = half & 0x3ff;
    const uint32_t bits = exponent == 31 ? 0x7f800000u | mantissa << 13 : (exponent + 112) << 23 | mantissa << 13;
    float magnitude;
    std::memcpy(&magnitude, &bits, sizeof magnitude);
    if (exponent == 0) magnitude = float(mantissa) * 0x1p-24f;
    return sign ? -magnitude : magnitude;
#endif
}

struct Int8 : Packed<Int8, int8_t, uint16_t, 1, 32> {
    static constexpr int step = 32;
    using Rest = Packed::Rest<step>;
#if SEQLOOM_WIDTH == 8 && defined(__AVX2__) && defined(__F16C__)
    static vf part(const Row& row, int64_t at, int part) {
        const __m128i codes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(row.codes + at + part * W));
        const __m256 scale = _mm256_cvtph_ps(_mm_set1_epi16(int16_t(row.scales[at / step])));
        return (vf)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes)) * (vf)scale;
    }
#else
    static vf part(const Row& row, int64_t at, int part) {
        typedef int8_t bytes __attribute__((vector_size(W)));
        bytes codes;
        std::memcpy(&codes, row.codes + at + part * W, sizeof codes);
        return __builtin_convertvector(__builtin_convertvector(codes, vi), vf) * half_to_float(row.scales[at / step]);
    }
#endif
    static constexpr int place(int part, int lane) { return part * W + lane; }
};

struct Fp8 : Packed<Fp8, fp8, fp8, 1, 0> {
    static constexpr int step = 4 * W;
    using Rest = Packed::Rest<step>;
#if SEQLOOM_WIDTH == 8 && defined(__AVX2__) && defined(__F16C__)
    // The same bits are an FP16 number of a 2^8 times smaller value, but for NaN, which no matrix holds.
    static constexpr float unit = 256;
    static vf part(const Row& row, int64_t at, int part) {
        const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(row.codes + at + part * W));
        const __m128i halves = _mm_srai_epi16(_mm_unpacklo_epi8(_mm_setzero_si128(), bytes), 1);
        return (vf)_mm256_cvtph_ps(_mm_and_si128(halves, _mm_set1_epi16(int16_t(0xbfff))));
    }
#else
    static vf part(const Row& row, int64_t at, int part) { return load(row.codes + at + part * W); }
#endif
    static constexpr int place(int part, int lane) { return part * W + lane; }
};

namespace packed_parts {

constexpr float e2m1[] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6, -0.0f, -0.5f, -1, -1.5f, -2, -3, -4, -6};

// The values of all E4M3 codes.
struct E4m3 {
    float values[256];
    constexpr E4m3() : values() {
        for (int code = 0; code < 256; ++code) {
            float value = float(code & 7) / 8 + (code >> 3 & 15 ? 1 : 0);
            for (int i = code >> 3 & 15; i > 7; --i) value *= 2;
            for (int i = code >> 3 & 15 ? code >> 3 & 15 : 1; i < 7; ++i) value /= 2;
            if ((code & 0x7f) == 0x7f) value = std::numeric_limits<float>::quiet_NaN();
            values[code] = code & 0x80 ? -value : value;
        }
    }
};
inline constexpr E4m3 e4m3{};

}  // namespace packed_parts

struct Nvfp4 : Packed<Nvfp4, uint8_t, uint8_t, 2, 16> {
#if SEQLOOM_WIDTH == 16 && defined(__AVX512BW__)
    static constexpr int step = 128;

    // Place `part` of every 32-bit word, of which two share a scale.
    static vf part(const Row& row, int64_t at, int part) {
        const vu words = (vu)_mm512_loadu_si512(row.codes + at / 2);
        const __m512 table = _mm512_loadu_ps(packed_parts::e2m1);
        const __m128i twice = _mm_setr_epi8(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
        const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(row.scales + at / 16));
        const __m512i scales = _mm512_cvtepu8_epi32(_mm_shuffle_epi8(bytes, twice));
        const __m512 values = _mm512_i32gather_ps(scales, packed_parts::e4m3.values, 4);
        return (vf)_mm512_mul_ps(_mm512_permutexvar_ps((__m512i)(words >> (4 * part)), table), values);
    }
    static constexpr int place(int part, int lane) { return 8 * lane + part; }
#elif SEQLOOM_WIDTH == 8 && defined(__AVX2__)
    static constexpr int step = 64;

    // Low or high halves of bytes, of the first or second eight in each half of the register, even or odd ones.
    static vf part(const Row& row, int64_t at, int part) {
        const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row.codes + at / 2));
        const __m256i codes = _mm256_and_si256(part < 4 ? bytes : _mm256_srli_epi16(bytes, 4), _mm256_set1_epi8(15));
        const __m256i upper = _mm256_shuffle_epi8(upper_bytes(), codes), lower = _mm256_shuffle_epi8(lower_bytes(), codes);
        const int second = part >> 1 & 1;
        const vu words = (vu)(second ? _mm256_unpackhi_epi8(lower, upper) : _mm256_unpacklo_epi8(lower, upper));
        const uint8_t* scales = row.scales + at / 16;
        const float* values = packed_parts::e4m3.values;
        const __m256 scale = _mm256_blend_ps(_mm256_broadcast_ss(values + scales[second]),
                                             _mm256_broadcast_ss(values + scales[2 + second]), 0xf0);
        return (vf)(part & 1 ? words & 0xffff0000u : words << 16) * (vf)scale;
    }
    static constexpr int place(int part, int lane) {
        return 2 * (lane / 4 * 16 + (part >> 1 & 1) * 8 + lane % 4 * 2 + (part & 1)) + part / 4;
    }
    // Of BF16: 0, 0.5, 1, 1.5, 2, 3, 4, 6, and the same below zero.
    static __m256i upper_bytes() {
        return _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 0x3f, 0x3f, 0x3f, 0x40, 0x40, 0x40, 0x40, int8_t(0x80),
                                                         int8_t(0xbf), int8_t(0xbf), int8_t(0xbf), int8_t(0xc0),
                                                         int8_t(0xc0), int8_t(0xc0), int8_t(0xc0)));
    }
    static __m256i lower_bytes() {
        return _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 0, int8_t(0x80), int8_t(0xc0), 0, 0x40, int8_t(0x80),
                                                         int8_t(0xc0), 0, 0, int8_t(0x80), int8_t(0xc0), 0, 0x40,
                                                         int8_t(0x80), int8_t(0xc0)));
    }
#else
    static constexpr int step = 16;

    static vf part(const Row& row, int64_t at, int part) {
        const float scale = packed_parts::e4m3.values[row.scales[at / 16]];
        vf values;
        for (int lane = 0; lane < W; ++lane) {
            const int64_t i = at + part * W + lane;
            values[lane] = packed_parts::e2m1[i % 2 ? row.codes[i / 2] >> 4 : row.codes[i / 2] & 15];
        }
        return values * scale;
    }
    static constexpr int place(int part, int lane) { return part * W + lane; }
#endif
    using Rest = Packed::Rest<step>;
};

}  // namespace seqloom
