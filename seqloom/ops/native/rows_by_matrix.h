// Products of rows with a matrix as it is stored, in whatever format: of plain numbers and E4M3 by few_rows.h or
// many_rows.h, which agree in every bit, of int8 and nvfp4 by integer_rows.h.
#pragma once

#include "fp8_weights.h"
#include "integer_rows.h"
#include "many_rows.h"
#include "matrix.h"

namespace seqloom {

template <class Weights>
inline constexpr bool in_panels = false;
template <>
inline constexpr bool in_panels<Int8> = true;
template <>
inline constexpr bool in_panels<Nvfp4> = true;

// Rows that are multiplied while w is read; with more it costs less to unpack w once. Measured.
template <class Weights>
constexpr int64_t few = std::is_same_v<Weights, Fp32> || std::is_same_v<Weights, RoundedToBf16> ? 32
                        : std::is_same_v<Weights, Bf16>                                        ? 16
                                                                                               : 8;

// Calls use(Weights{}, rows) with the way to read a matrix [n, k] for products in the format T. Rows of plain numbers
// are `ldw` apart.
template <class T, class F>
void with_weights(const Matrix& w, int64_t k, int64_t ldw, F&& use) {
    constexpr bool wide = sizeof(T) == 4;
    switch (w.kind) {
        case fp32_kind:
            return use(std::conditional_t<wide, Fp32, RoundedToBf16>{}, PlainRows<float>{(const float*)w.data, ldw});
        case bf16_kind: return use(Bf16{}, PlainRows<bf16>{(const bf16*)w.data, ldw});
        case fp8_kind: return use(Fp8{}, PlainRows<fp8>{(const fp8*)w.data, k});
        case int8_kind: return use(Int8{}, Panels<Int8>(w.data, w.scales, k));
        default: return use(Nvfp4{}, Panels<Nvfp4>(w.data, w.scales, k));
    }
}

// Words of memory that a row of x takes.
template <class Weights>
int64_t width_of_row(int64_t k) {
    if constexpr (in_panels<Weights>) return stretches_of(k) * stretch_words;
    else return arranged_width<Weights>(k);
}

// Row i of m rows of x, in the order of `Weights`, in m times `width_of_row` words.
template <class Weights, class T>
void arrange_row(const T* x, int64_t i, int64_t m, int64_t k, float* to) {
    if constexpr (in_panels<Weights>) fix_row(x, i, {m, Weights::tile_rows}, k, to);
    else arrange<Weights>(x, k, to + i * arranged_width<Weights>(k));
}

// y [m, n] = x [m, k] w [n, k]^T for x of `arrange_row`, without the matrix's multiplier; rows of y are `ldy` apart.
template <class Weights>
void rows_by_matrix(int64_t m, int64_t n, int64_t k, const float* x, const typename Weights::Rows& w, float* y,
                    int64_t ldy) {
    if constexpr (in_panels<Weights>)
        integer_rows<Weights>(m, n, x, w, y, ldy);
    else
        (m <= few<Weights> ? few_rows<Weights>
                           : many_rows<Weights>)(m, n, k, x, arranged_width<Weights>(k), w, y, ldy);
}

}  // namespace seqloom
