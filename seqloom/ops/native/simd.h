// Vectors of W floats, and the few functions on them that kernels need.
//
// Written with the vector extensions of GCC and Clang, so the same text becomes AVX2 (W = 8), AVX-512 (W = 16), NEON or
// anything else (W = 4). The compiler fuses nothing by itself (-ffp-contract=off): where a product and a sum should
// round once, write fma(a, b, c). Storage is float or bf16; arithmetic is float.
//
//     vf x = load(p);              W numbers from float* or bf16*
//     vf x = load(p, n);           the first n < W, zeros behind them
//     store(p, x); store(p, x, n);
//     vf y = fma(a, b, c);         a b + c, rounded once where the processor can
//
// Operators work lane by lane, also between a vector and a scalar: x * 2.0f + y. A comparison gives lanes of 0 or -1:
// `x > y ? x : y`.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#if defined(SEQLOOM_WIDTH)  // forced by a test, to run on one machine the shapes that another one has
#elif defined(__AVX512F__)
#define SEQLOOM_WIDTH 16
#elif defined(__AVX__)
#define SEQLOOM_WIDTH 8
#else
#define SEQLOOM_WIDTH 4
#endif

namespace seqloom {

constexpr int W = SEQLOOM_WIDTH;

typedef float vf __attribute__((vector_size(W * 4)));
typedef int32_t vi __attribute__((vector_size(W * 4)));
typedef uint32_t vu __attribute__((vector_size(W * 4)));
typedef uint16_t vh __attribute__((vector_size(W * 2)));

struct bf16 {
    uint16_t bits;
};

[[gnu::always_inline]] inline vf broadcast(float x) { return vf{} + x; }
[[gnu::always_inline]] inline vu broadcast(uint32_t x) { return vu{} + x; }

// -1 in the first n lanes, 0 in the others.
[[gnu::always_inline]] inline vi first_lanes(int64_t n) {
    vi lane;
    for (int i = 0; i < W; ++i) lane[i] = i;
    return lane < (int32_t)n;
}

// Vectors -----------------------------------------------------------------------------------------------------------

[[gnu::always_inline]] inline vf load(const float* p) {
    vf x;
    std::memcpy(&x, p, sizeof x);
    return x;
}

[[gnu::always_inline]] inline vf load(const bf16* p) {
    vh half;
    std::memcpy(&half, p, sizeof half);
    return (vf)(__builtin_convertvector(half, vu) << 16);
}

[[gnu::always_inline]] inline vf load(const float* p, int64_t n) {
#if SEQLOOM_WIDTH == 16 && defined(__AVX512F__)
    return (vf)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
#elif SEQLOOM_WIDTH == 8 && defined(__AVX2__)
    return (vf)_mm256_maskload_ps(p, (__m256i)first_lanes(n));
#else
    float part[W] = {};
    for (int64_t i = 0; i < n; ++i) part[i] = p[i];
    return load(part);
#endif
}

[[gnu::always_inline]] inline vf load(const bf16* p, int64_t n) {
    bf16 part[W] = {};
    for (int64_t i = 0; i < n; ++i) part[i] = p[i];
    return load(part);
}

[[gnu::always_inline]] inline void store(float* p, vf x) { std::memcpy(p, &x, sizeof x); }

// To the nearest, ties to even; a NaN stays one.
[[gnu::always_inline]] inline void store(bf16* p, vf x) {
    vu bits = (vu)x;
    vu rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    vu nan = (bits >> 16) | 0x40u;
    vh half = __builtin_convertvector((x == x) ? rounded : nan, vh);
    std::memcpy(p, &half, sizeof half);
}

[[gnu::always_inline]] inline void store(float* p, vf x, int64_t n) {
#if SEQLOOM_WIDTH == 16 && defined(__AVX512F__)
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)x);
#elif SEQLOOM_WIDTH == 8 && defined(__AVX2__)
    _mm256_maskstore_ps(p, (__m256i)first_lanes(n), (__m256)x);
#else
    float part[W];
    store(part, x);
    for (int64_t i = 0; i < n; ++i) p[i] = part[i];
#endif
}

[[gnu::always_inline]] inline void store(bf16* p, vf x, int64_t n) {
    bf16 part[W];
    store(part, x);
    for (int64_t i = 0; i < n; ++i) p[i] = part[i];
}

[[gnu::always_inline]] inline vf fma(vf a, vf b, vf c) {
#if SEQLOOM_WIDTH == 16 && defined(__AVX512F__)
    return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif SEQLOOM_WIDTH == 8 && defined(__FMA__)
    return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif SEQLOOM_WIDTH == 4 && defined(__aarch64__)
    return (vf)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#elif defined(__FP_FAST_FMAF) || defined(__FMA__)  // the first is unknown to Clang on x86
    vf result;
    for (int i = 0; i < W; ++i) result[i] = __builtin_fmaf(a[i], b[i], c[i]);
    return result;
#else
    return a * b + c;
#endif
}

[[gnu::always_inline]] inline vf sqrt(vf x) {
    vf result;
    for (int i = 0; i < W; ++i) result[i] = __builtin_sqrtf(x[i]);
    return result;
}

[[gnu::always_inline]] inline vf abs(vf x) { return (vf)((vu)x & 0x7fffffffu); }

// The second where one is NaN.
[[gnu::always_inline]] inline vf max(vf a, vf b) { return a > b ? a : b; }
[[gnu::always_inline]] inline vf min(vf a, vf b) { return a < b ? a : b; }

// Over the lanes, by halves.
[[gnu::always_inline]] inline float sum(vf x) {
    for (int half = W / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) x[i] += x[i + half];
    return x[0];
}

[[gnu::always_inline]] inline float max(vf x) {
    for (int half = W / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) x[i] = x[i] > x[i + half] ? x[i] : x[i + half];
    return x[0];
}

// Functions ---------------------------------------------------------------------------------------------------------

// exp(x) = 2^n exp(r), |r| <= ln(2) / 2; 2^n in two factors, so that results below the normal range round once.
[[gnu::always_inline]] inline vf exp(vf x) {
    constexpr float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number
    x = x > 89.0f ? broadcast(89.0f) : x;
    x = x < -104.0f ? broadcast(-104.0f) : x;
    vf shifted = fma(x, broadcast(1.44269504f), broadcast(magic));
    vf n = shifted - magic;
    vf r = fma(n, broadcast(-0.693359375f), x);
    r = fma(n, broadcast(2.12194440e-4f), r);
    vf q = broadcast(0.0013814467238262296f);
    q = fma(q, r, broadcast(0.008368780836462975f));
    q = fma(q, r, broadcast(0.04166839271783829f));
    q = fma(q, r, broadcast(0.1666651964187622f));
    q = fma(q, r, broadcast(0.4999999403953552f));
    vf y = fma(q * r, r, r) + 1.0f;
    vi exponent = (vi)shifted - (vi)broadcast(magic);
    vi half = exponent >> 1;
    vf first = (vf)((half + 127) << 23), second = (vf)((exponent - half + 127) << 23);
    return y * first * second;
}

// log(1 + f) = f - s (f - R),  s = f / (2 + f),  R = 2 atanh(s) / s - 2, for -0.3 < f <= 1.
[[gnu::always_inline]] inline vf log1p_near(vf f) {
    vf s = f / (f + 2.0f), z = s * s;
    vf q = broadcast(0.24308320879936218f);
    q = fma(q, z, broadcast(0.21425852179527283f));
    q = fma(q, z, broadcast(0.2861703634262085f));
    q = fma(q, z, broadcast(0.39998874068260193f));
    q = fma(q, z, broadcast(0.6666667461395264f));
    return f - s * (f - z * q);
}

[[gnu::always_inline]] inline vf log(vf x) {
    vf scaled = x < 1.17549435e-38f ? x * 8388608.0f : x;
    vi less = (x < 1.17549435e-38f) & 23;
    vi exponent = ((vi)scaled - 0x3f3504f3) >> 23;  // of the mantissa between sqrt(1/2) and sqrt(2)
    vf mantissa = (vf)((vi)scaled - (exponent << 23));
    vf n = __builtin_convertvector(exponent - less, vf);
    vf y = fma(n, broadcast(0.693359375f), fma(n, broadcast(-2.12194440e-4f), log1p_near(mantissa - 1.0f)));
    y = x == 0.0f ? broadcast(-INFINITY) : y;
    y = x < 0.0f ? broadcast(NAN) : y;
    return x < INFINITY ? y : x;
}

[[gnu::always_inline]] inline vf sigmoid(vf x) {
    vf e = exp(-abs(x));
    return (x < 0.0f ? e : broadcast(1.0f)) / (e + 1.0f);
}

// log(1 + exp(x)).
[[gnu::always_inline]] inline vf softplus(vf x) { return max(x, vf{}) + log1p_near(exp(-abs(x))); }

}  // namespace seqloom
