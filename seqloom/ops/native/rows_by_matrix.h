// Products of rows with a matrix as it is stored, in whatever format: few_rows.h or many_rows.h, which agree in every bit.
#pragma once

#include "many_rows.h"
#include "matrix.h"
#include "packed.h"

namespace seqloom {

// Rows that are multiplied while w is read; with more it costs less to unpack w once. Measured.
template <class Weights>
constexpr int64_t few = std::is_same_v<Weights, Nvfp4> ? 4 : Weights::packed ? 8 : std::is_same_v<Weights, Bf16> ? 16 : 32;

// Calls use(Weights{}, rows) with the way to read a matrix [n, k] for products in the format T. Rows of plain numbers are
// `ldw` apart.
template <class T, class F>
void with_weights(const Matrix& w, int64_t k, int64_t ldw, F&& use) {
    constexpr bool wide = sizeof(T) == 4;
    switch (w.kind) {
        case fp32_kind:
            return use(std::conditional_t<wide, Fp32, RoundedToBf16>{}, PlainRows<float>{(const float*)w.data, ldw});
        case bf16_kind: return use(Bf16{}, PlainRows<bf16>{(const bf16*)w.data, ldw});
        case int8_kind: return use(Int8{}, Int8::rows(w.data, w.scales, k));
        case fp8_kind: return use(Fp8{}, Fp8::rows(w.data, w.scales, k));
        default: return use(Nvfp4{}, Nvfp4::rows(w.data, w.scales, k));
    }
}

// Rows of x are arranged; the matrix's multiplier is left out.
template <class Weights>
void rows_by_matrix(int64_t m, int64_t n, int64_t k, const float* x, int64_t ldx, const typename Weights::Rows& w, float* y,
                    int64_t ldy) {
    (m <= few<Weights> ? few_rows<Weights> : many_rows<Weights>)(m, n, k, x, ldx, w, y, ldy);
}

}  // namespace seqloom
