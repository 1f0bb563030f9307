// Philox4x32-10 for W counters at a time: random numbers that depend on a key and a position alone.
//
//     vu words[4];
//     philox(key, low, high, third, words);      counter (low, high, third, 0) of every lane
//
// The definition is numerics/philox.py.
#pragma once

#include "simd.h"

namespace seqloom {

typedef uint64_t vl __attribute__((vector_size(W * 4)));  // W / 2 lanes

// x y of the low halves of each lane
[[gnu::always_inline]] inline vl product_of_halves(vl x, uint32_t y) {
#if SEQLOOM_WIDTH == 16 && defined(__AVX512F__)
    return (vl)_mm512_mul_epu32((__m512i)x, _mm512_set1_epi32((int)y));
#elif SEQLOOM_WIDTH == 8 && defined(__AVX2__)
    return (vl)_mm256_mul_epu32((__m256i)x, _mm256_set1_epi32((int)y));
#else
    return (x & 0xffffffffu) * (uint64_t)y;
#endif
}

// High and low word of the 64-bit product of every lane.
[[gnu::always_inline]] inline void wide_product(vu x, uint32_t y, vu* high, vu* low) {
    const vl even = product_of_halves((vl)x, y), odd = product_of_halves((vl)x >> 32, y);
#if SEQLOOM_WIDTH == 8 && defined(__AVX2__)
    *high = (vu)_mm256_blend_epi32((__m256i)(even >> 32), (__m256i)odd, 0xaa);
    *low = (vu)_mm256_blend_epi32((__m256i)even, (__m256i)(odd << 32), 0xaa);
#else
    constexpr uint64_t right = 0xffffffffu;
    *high = (vu)((even >> 32) | (odd & ~right));
    *low = (vu)((even & right) | (odd << 32));
#endif
}

// N times W counters side by side, which do not wait for each other.
template <int N>
[[gnu::always_inline]] inline void philox(uint64_t key, const vu (&low)[N], vu high, uint32_t third, vu (&words)[N][4]) {
    uint32_t k0 = uint32_t(key), k1 = uint32_t(key >> 32);
    for (int i = 0; i < N; ++i) words[i][0] = low[i], words[i][1] = high, words[i][2] = broadcast(third), words[i][3] = vu{};
    for (int round = 0; round < 10; ++round) {
#pragma GCC unroll 4
        for (int i = 0; i < N; ++i) {
            vu* c = words[i];
            vu high0, low0, high1, low1;
            wide_product(c[0], 0xD2511F53u, &high0, &low0);
            wide_product(c[2], 0xCD9E8D57u, &high1, &low1);
            c[0] = high1 ^ c[1] ^ k0;
            c[1] = low1;
            c[2] = high0 ^ c[3] ^ k1;
            c[3] = low0;
        }
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
}

[[gnu::always_inline]] inline void philox(uint64_t key, vu low, vu high, uint32_t third, vu* words) {
    vu found[1][4];
    philox<1>(key, {low}, high, third, found);
    std::memcpy(words, found, sizeof found);
}

}  // namespace seqloom
