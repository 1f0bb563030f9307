// What softmax needs of a row of numbers: the largest, and the sum of all exponentials relative to it.
#pragma once

#include <algorithm>

#include "lanes.h"

namespace seqloom {

// exp(x) for x <= 0, in half the work of `exp`: to 2e-7 + 2e-8 |x| of itself, and never less than exp(-87) = 1.6e-38.
// A NaN stays one.
[[gnu::always_inline]] inline vf exp_below(vf x) {
    constexpr float magic = 12582912.0f + 127, log2_e = 1.44269504f;  // 1.5 * 2^23 rounds to a whole number, as in `exp`
    x = max(broadcast(-87.0f), x);
    vf shifted = fma(x, broadcast(log2_e), broadcast(magic));
    vf r = fma(x, broadcast(log2_e), magic - shifted);  // x log2(e) less that number: |r| <= 1/2
    vf q = broadcast(1.535336188319500e-4f);
    q = fma(q, r, broadcast(1.339887440266574e-3f));
    q = fma(q, r, broadcast(9.618437357674640e-3f));
    q = fma(q, r, broadcast(5.550332471162809e-2f));
    q = fma(q, r, broadcast(2.402264791363012e-1f));
    q = fma(q, r, broadcast(6.931472028550421e-1f));
    return fma(q, r, broadcast(1.0f)) * (vf)((vi)shifted << 23);
}

// -infinity for none.
template <class E>
float largest(const E* x, int64_t count) {
    vf tops[4];
    for (vf& top : tops) top = broadcast(-INFINITY);
    int64_t i = 0;
    for (; i + 4 * W <= count; i += 4 * W)
        for (int part = 0; part < 4; ++part) tops[part] = max(tops[part], load(x + i + part * W));
    for (; i + W <= count; i += W) tops[0] = max(tops[0], load(x + i));
    float most = max(max(max(tops[0], tops[1]), max(tops[2], tops[3])));
    for (; i < count; ++i) most = std::max(most, load(x + i, 1)[0]);
    return most;
}

// Sum of exp(x - top), where no x is above `top`; keep(i, e, lanes) is given every exponential.
template <class E, class Keep>
float exponentials(const E* x, int64_t count, float top, Keep&& keep) {
    auto term = [&](int64_t i, auto lanes) {
        const vf e = exp_below(load(x + i, lanes) - top);
        keep(i, e, lanes);
        return e;
    };
    vf sums[4] = {};
    int64_t i = 0;
    for (; i + 4 * W <= count; i += 4 * W)
        for (int part = 0; part < 4; ++part) sums[part] += term(i + part * W, Whole{});
    for (; i + W <= count; i += W) sums[0] += term(i, Whole{});
    if (i < count) {
        const vf e = term(i, Part{count - i});
        sums[1] += first_lanes(count - i) ? e : vf{};
    }
    return sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

}  // namespace seqloom
