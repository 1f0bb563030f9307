// The functions of AVX-512 that kernels call, in halves of AVX2, so that what is written for the one runs on the other.
#pragma once
#include <immintrin.h>

namespace wide {

union Floats { __m512 whole; __m256 half[2]; float each[16]; };
union Words { __m512i whole; __m256i half[2]; };

inline __m512 fma(__m512 a, __m512 b, __m512 c) {
    Floats x{a}, y{b}, z{c};
    for (int i = 0; i < 2; ++i) z.half[i] = _mm256_fmadd_ps(x.half[i], y.half[i], z.half[i]);
    return z.whole;
}

inline __m512 widen(__m256i halves) {
    Floats x;
    x.half[0] = _mm256_cvtph_ps(_mm256_castsi256_si128(halves));
    x.half[1] = _mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1));
    return x.whole;
}

inline __m512i multiply(__m512i a, __m512i b) {
    Words x{a}, y{b};
    for (int i = 0; i < 2; ++i) x.half[i] = _mm256_mul_epu32(x.half[i], y.half[i]);
    return x.whole;
}

inline __m512i repeat(int value) {
    Words x;
    x.half[0] = x.half[1] = _mm256_set1_epi32(value);
    return x.whole;
}

inline __m512 load(__mmask16 lanes, const float* p) {
    Floats x;
    for (int i = 0; i < 16; ++i) x.each[i] = lanes >> i & 1 ? p[i] : 0.0f;
    return x.whole;
}

inline void store(float* p, __mmask16 lanes, __m512 given) {
    const Floats x{given};
    for (int i = 0; i < 16; ++i)
        if (lanes >> i & 1) p[i] = x.each[i];
}

}  // namespace wide

#define __AVX512F__ 1
#define asm(...)  // of registers that are not there
#define _mm512_fmadd_ps wide::fma
#define _mm512_cvtph_ps wide::widen
#define _mm512_mul_epu32 wide::multiply
#define _mm512_set1_epi32 wide::repeat
#define _mm512_maskz_loadu_ps wide::load
#define _mm512_mask_storeu_ps wide::store
