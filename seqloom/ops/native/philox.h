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
    constexpr uint64_t right = 0xffffffffu;
    const vl even = product_of_halves((vl)x, y), odd = product_of_halves((vl)x >> 32, y);
    *high = (vu)((even >> 32) | (odd & ~right));
    *low = (vu)((even & right) | (odd << 32));
}

[[gnu::always_inline]] inline void philox(uint64_t key, vu low, vu high, uint32_t third, vu* words) {
    uint32_t k0 = uint32_t(key), k1 = uint32_t(key >> 32);
    vu c0 = low, c1 = high, c2 = broadcast(third), c3 = {};
    for (int round = 0; round < 10; ++round) {
        vu high0, low0, high1, low1;
        wide_product(c0, 0xD2511F53u, &high0, &low0);
        wide_product(c2, 0xCD9E8D57u, &high1, &low1);
        c0 = high1 ^ c1 ^ k0;
        c1 = low1;
        c2 = high0 ^ c3 ^ k1;
        c3 = low0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    words[0] = c0, words[1] = c1, words[2] = c2, words[3] = c3;
}

}  // namespace seqloom
