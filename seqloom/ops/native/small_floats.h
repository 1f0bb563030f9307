// Rounding to E2M1, E4M3 and E5M2 on FP32 lanes, and the scales of blocks, bit for bit as numerics/elements.py and
// numerics/block_scales.py define them.
//
// Adding to a magnitude a power of two whose last bit is the format's step, and taking it away again, rounds to the
// nearest, ties to even. Below the normal range the step is that of the smallest normal number.
#pragma once

#include "lanes.h"

namespace seqloom {

// The order of Python's tables.
enum Element { e2m1, e4m3, e5m2 };
enum ScaleKind { fp32_scale, power_of_two, e8m0_ceil, e8m0_floor, nvfp4, gam };

constexpr float greatest = 3.40282347e38f;

struct Format {
    float largest, smallest;  // smallest normal
    uint32_t mantissa;        // bits
    uint32_t top;             // exponent of the largest

    explicit Format(int element)
        : largest(element == e2m1 ? 6.0f : element == e4m3 ? 448.0f : 57344.0f),
          smallest(element == e2m1 ? 1.0f : element == e4m3 ? 0x1p-6f : 0x1p-14f),
          mantissa(element == e2m1 ? 1 : element == e4m3 ? 3 : 2),
          top(element == e2m1 ? 2 : element == e4m3 ? 8 : 15) {}
};

[[gnu::always_inline]] inline vf exponent_of(vf x) { return (vf)((vu)x & 0x7f800000u); }

// Clamped. A NaN stays one where the format has it, and becomes the largest where not.
template <bool has_nan>
[[gnu::always_inline]] inline vf clamped_magnitude(vf x, const Format& format) {
    const vf largest = broadcast(format.largest);
    return has_nan ? min(largest, abs(x)) : min(abs(x), largest);
}

template <bool has_nan>
[[gnu::always_inline]] inline vf with_sign_of(vf x, vf magnitude) {
    const vu sign = (vu)x & 0x80000000u;
    return (vf)((vu)magnitude | (has_nan ? sign : sign & (vu)(x == x)));
}

template <bool has_nan>
[[gnu::always_inline]] inline vf round_nearest(vf x, const Format& format) {
    const vf magnitude = clamped_magnitude<has_nan>(x, format);
    const vf binade = max(exponent_of(magnitude), broadcast(format.smallest));
    const vf shift = (vf)((vu)binade + ((23 - format.mantissa) << 23));
    return with_sign_of<has_nan>(x, (magnitude + shift) - shift);
}

// `uniform` in [0, 1); the product with a power of two is exact, so the sum rounds once.
template <bool has_nan>
[[gnu::always_inline]] inline vf round_stochastic(vf x, vf uniform, const Format& format) {
    const vf magnitude = clamped_magnitude<has_nan>(x, format), smallest = broadcast(format.smallest);
    const vu below = broadcast(format.mantissa << 23);
    const vf moved = uniform * (vf)((vu)max(exponent_of(magnitude), smallest) - below) + magnitude;
    const vu step = (vu)max(exponent_of(moved), smallest) - below;
    const vi steps = __builtin_convertvector(moved * (vf)(broadcast(254u << 23) - step), vi);
    const vf value = min(__builtin_convertvector(steps, vf) * (vf)step, broadcast(format.largest));
    return with_sign_of<has_nan>(x, has_nan ? (x == x ? value : x) : value);
}

// What turns a number into an element and back: element = round(number * encode), number ~ element * decode.
struct Scales {
    vf encode, decode;
};

// How the scales of blocks follow from their largest magnitudes, given the tensor's.
class ScaleRule {
public:
    ScaleRule(int kind, bool per_tensor, const Format& format, float amax)
        : kind_(per_tensor && kind != power_of_two ? fp32_scale : ScaleKind(kind)), format_(format), block_format_(e4m3) {
        if (per_tensor) {
            const Scales whole = (*this)(broadcast(amax));
            encode_ = whole.encode[0];
            tensor_ = whole.decode[0];
        } else if (kind_ == nvfp4) {
            const float ratio = 2688.0f / amax, encode = ratio > greatest ? greatest : ratio;
            encode_ = amax == 0 || encode == 0 ? 1 : encode;
            decode_ = 1 / encode_;
            encode_ *= 1.0f / 6.0f;
            tensor_ = amax / 2688.0f;
        } else if (kind_ == gam) {
            const vf group = current(broadcast(amax));
            decode_ = exponent_of(group)[0];
            encode_ = group[0] / decode_;
            tensor_ = 1 / encode_;
        }
    }

    float tensor() const { return tensor_; }   // the multiplier that decodes the tensor
    float encode() const { return encode_; }   // of a tensor with one scale

    [[gnu::always_inline]] Scales operator()(vf amax) const {
        if (kind_ == nvfp4) {
            const vf block = round_nearest<true>(min(amax * encode_, broadcast(greatest)), block_format_);
            return {min(1.0f / (block * decode_), broadcast(greatest)), block};
        }
        if (kind_ == e8m0_ceil || kind_ == e8m0_floor) {
            const vf power = e8m0(amax);
            return {1.0f / power, power};
        }
        vf scale = current(amax);
        if (kind_ == gam) {
            vf power = exponent_of(scale);
            power = encode_ > scale / power ? power * 0.5f : power;
            power = meaningful(amax) ? power : broadcast(decode_);
            return {encode_ * power, 1.0f / power};
        }
        if (kind_ == power_of_two) scale = exponent_of(scale);
        return {scale, 1.0f / scale};
    }

private:
    [[gnu::always_inline]] static vi meaningful(vf amax) { return (vi)(amax > 0.0f) & (vi)(amax <= greatest); }

    // largest / amax; 1 where that has no meaning
    [[gnu::always_inline]] vf current(vf amax) const {
        const vf scale = min(format_.largest / amax, broadcast(greatest));
        return meaningful(amax) ? scale : broadcast(1.0f);
    }

    // 2^(code - 127), the scales of MX; code 0 is a subnormal number
    [[gnu::always_inline]] vf e8m0(vf amax) const {
        const vi bits = (vi)(kind_ == e8m0_ceil ? amax * (1.0f / format_.largest) : amax);
        const vi mantissa = bits & 0x007fffff, exponent = bits >> 23;
        const vi least = (vi)(exponent == 0) & (vi)(mantissa <= 1 << 22);
        vi code = kind_ == e8m0_ceil ? exponent - ((vi)(mantissa > 0) & ~least) : exponent - (int32_t)format_.top;
        code = code < 0 ? vi{} : code;
        code = code > 254 ? vi{} + 254 : code;
        return (vf)(code == 0 ? vi{} + (1 << 22) : code << 23);
    }

    ScaleKind kind_;
    Format format_, block_format_;
    float encode_ = 1, decode_ = 1, tensor_ = 1;  // NVFP4: s_enc / 6, s_dec; GAM: the tensor's mantissa and exponent
};

}  // namespace seqloom
