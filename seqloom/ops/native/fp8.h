// E4M3 as it is stored, a byte a number: read and written like float and bf16, to the bits of numerics/elements.py.
#pragma once

#include "small_floats.h"

namespace seqloom {

struct fp8 {
    uint8_t bits;
};

typedef uint8_t vb __attribute__((vector_size(W)));

[[gnu::always_inline]] inline vf load(const fp8* p) {
    vb codes;
    std::memcpy(&codes, p, sizeof codes);
    const vu wide = __builtin_convertvector(codes, vu), magnitude = wide & 0x7fu;
    const vf normal = (vf)((magnitude << 20) + (120u << 23));
    const vf subnormal = __builtin_convertvector((vi)magnitude, vf) * 0x1p-9f;
    vf value = magnitude < 8u ? subnormal : normal;
    value = magnitude == 0x7fu ? broadcast(NAN) : value;
    return (vf)((vu)value | (wide & 0x80u) << 24);
}

// Two vectors at once, in fewer steps: `fp8_unit` times smaller than they are.
#if defined(__F16C__) && (SEQLOOM_WIDTH == 8 || (SEQLOOM_WIDTH == 16 && defined(__AVX512F__)))
constexpr float fp8_unit = 256;

[[gnu::always_inline]] inline void load_pair(const fp8* p, vf& first, vf& second) {
    typedef int8_t bytes __attribute__((vector_size(2 * W)));
    typedef int16_t halves __attribute__((vector_size(4 * W)));
    bytes codes;
    std::memcpy(&codes, p, sizeof codes);
    // The bits are those of a 2^8 times smaller FP16 number, which hardware widens, subnormal ones too. Of the two
    // signs that shifting leaves the lower one is the exponent's top bit, which only NaN, all ones, has.
    const halves finite = (__builtin_convertvector(codes, halves) << 7) & (int16_t)0xbfff;
    const halves half = finite | ((finite + 0x80) & 0x4000);
    vh parts[2];
    std::memcpy(parts, &half, sizeof parts);
#if SEQLOOM_WIDTH == 16
    first = (vf)_mm512_cvtph_ps((__m256i)parts[0]);
    second = (vf)_mm512_cvtph_ps((__m256i)parts[1]);
#else
    first = (vf)_mm256_cvtph_ps((__m128i)parts[0]);
    second = (vf)_mm256_cvtph_ps((__m128i)parts[1]);
#endif
}
#else
constexpr float fp8_unit = 1;

[[gnu::always_inline]] inline void load_pair(const fp8* p, vf& first, vf& second) {
    first = load(p);
    second = load(p + W);
}
#endif

// To the nearest, ties to even, at most the largest; a NaN stays one.
[[gnu::always_inline]] inline void store(fp8* p, vf x) {
    const vf value = round_nearest<true>(x, Format(e4m3)), magnitude = abs(value);
    const vu normal = ((vu)magnitude >> 20) - (120u << 3);
    const vu subnormal = (vu)__builtin_convertvector(magnitude * 512.0f, vi);
    vu code = magnitude < 0x1p-6f ? subnormal : normal;
    code = value == value ? code : broadcast(uint32_t{0x7f});
    const vb codes = __builtin_convertvector(code | ((vu)value >> 24 & 0x80u), vb);
    std::memcpy(p, &codes, sizeof codes);
}

[[gnu::always_inline]] inline vf load(const fp8* p, int64_t n) {
    fp8 part[W] = {};
    for (int64_t i = 0; i < n; ++i) part[i] = p[i];
    return load(part);
}

[[gnu::always_inline]] inline void store(fp8* p, vf x, int64_t n) {
    fp8 part[W];
    store(part, x);
    for (int64_t i = 0; i < n; ++i) p[i] = part[i];
}

}  // namespace seqloom
