// Every function of simd.h, and the exponential of softmax.h, over an array.
#include "simd.h"
#include "softmax.h"

using namespace seqloom;

// Whole vectors, then the rest, as a kernel would.
template <class From, class To, class F>
void map(const From* x, To* y, int64_t n, F&& function) {
    int64_t i = 0;
    for (; i + W <= n; i += W) store(y + i, function(load(x + i)));
    if (i < n) store(y + i, function(load(x + i, n - i)), n - i);
}

extern "C" int32_t width() { return W; }
extern "C" int32_t fuses() {  // whether the processor rounds a product and a sum once
#if defined(__FMA__) || defined(__FP_FAST_FMAF)
    return 1;
#else
    return 0;
#endif
}
extern "C" void apply_exp(const float* x, float* y, int64_t n) {
    map(x, y, n, [](vf v) { return exp(v); });
}
extern "C" void apply_exp_below(const float* x, float* y, int64_t n) {
    map(x, y, n, [](vf v) { return exp_below(-abs(v)); });
}
extern "C" void apply_log(const float* x, float* y, int64_t n) {
    map(x, y, n, [](vf v) { return log(v); });
}
extern "C" void apply_sigmoid(const float* x, float* y, int64_t n) {
    map(x, y, n, [](vf v) { return sigmoid(v); });
}
extern "C" void apply_softplus(const float* x, float* y, int64_t n) {
    map(x, y, n, [](vf v) { return softplus(v); });
}
extern "C" void apply_sqrt(const float* x, float* y, int64_t n) {
    map(x, y, n, [](vf v) { return sqrt(v); });
}
extern "C" void apply_abs(const float* x, float* y, int64_t n) {
    map(x, y, n, [](vf v) { return abs(v); });
}
extern "C" void apply_fma(const float* a, const float* b, float* c, int64_t n) {
    for (int64_t i = 0; i < n; i += W) store(c + i, fma(load(a + i), load(b + i), load(c + i)));
}

extern "C" void narrow(const float* x, bf16* y, int64_t n) {
    map(x, y, n, [](vf v) { return v; });
}
extern "C" void widen(const bf16* x, float* y, int64_t n) {
    map(x, y, n, [](vf v) { return v; });
}

extern "C" float sum_of(const float* x) { return sum(load(x)); }
extern "C" float max_of(const float* x) { return max(load(x)); }
extern "C" void larger(const float* a, const float* b, float* y, float* z) {
    store(y, max(load(a), load(b)));
    store(z, min(load(a), load(b)));
}
extern "C" void first_lanes(const float* x, int64_t n, float* y) { store(y, load(x, n)); }
