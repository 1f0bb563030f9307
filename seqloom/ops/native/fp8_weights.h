// How few_rows.h reads weights in E4M3: widened in registers, exactly.
#pragma once

#include "few_rows.h"
#include "fp8.h"

namespace seqloom {

struct Fp8 : Plain<fp8> {
    static constexpr bool packed = true;
    static constexpr int step = 4 * W;
    using Rest = Plain::Rest<step>;
#if SEQLOOM_WIDTH == 8 && defined(__AVX2__) && defined(__F16C__)
    // The same bits are an FP16 number of a 2^8 times smaller value, but for NaN, which no matrix holds.
    static constexpr float unit = 256;
    static vf part(Row row, int64_t at, int part) {
        const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(row + at + part * W));
        const __m128i halves = _mm_srai_epi16(_mm_unpacklo_epi8(_mm_setzero_si128(), bytes), 1);
        return (vf)_mm256_cvtph_ps(_mm_and_si128(halves, _mm_set1_epi16(int16_t(0xbfff))));
    }
#else
    static vf part(Row row, int64_t at, int part) { return load(row + at + part * W); }
#endif
    template <class T>
    static void arrange(const T* x, float* to) {
        for (int i = 0; i < step; i += W) store(to + i, load(x + i));
    }
};

}  // namespace seqloom
