// The random Hadamard transform of sixteen points, down the rows or along them; see quantize.py.
//
// A tile is sixteen vectors, and a butterfly works on whole ones: down the rows as they lie, along them once turned.
#include "magnitudes.h"

namespace seqloom {
namespace {

[[gnu::always_inline]] inline void butterfly(vf* first, vf* second) {
    const vf a = *first, b = *second;
    *first = a + b;
    *second = a - b;
}

// Of sixteen vectors, lane by lane.
[[gnu::always_inline]] inline void transform_down(vf* x) {
    for (int half = group / 2; half; half /= 2)
        for (int i = 0; i < group; ++i)
            if (!(i & half)) butterfly(x + i, x + i + half);
}

// Sixteen rows at a time, which may end early. Returns the largest magnitudes of what it wrote.
template <class T>
vf hadamard_down(const Numbers<const T>& x, const float* signs, bf16* out, int64_t row) {
    vf most = {};
    const int64_t rows = std::min(group, x.rows - row);
    each_vector(x.columns, [&](int64_t j, auto lanes) {
        vf tile[group] = {};
        for (int64_t i = 0; i < rows; ++i) tile[i] = load(x.at(row + i, j), lanes) * signs[i];
        transform_down(tile);
        for (int64_t i = 0; i < group; ++i) {
            bf16* place = out + (row + i) * x.columns + j;
            store(place, tile[i] * 0.25f, lanes);
            most = max(abs(load(place, lanes)), most);
        }
    });
    return most;
}

// One row, sixteen numbers at a time: W tiles side by side are sixteen vectors once turned.
template <class T>
vf hadamard_along(const Numbers<const T>& x, const float* signs, bf16* out, int64_t row) {
    const int64_t columns = ceiling(x.columns, group) * group;
    float turned[group * W];
    for (int64_t j = 0; j < columns; j += group * W) {
        const int64_t tiles = std::min<int64_t>(W, (columns - j) / group);
        std::fill_n(turned, group * W, 0.0f);
        float straight[group * W] = {};
        const int64_t there = std::min(x.columns - j, group * W);
        each_vector(there, [&](int64_t i, auto lanes) { store(straight + i, load(x.at(row, j + i), lanes)); });
        vf tile[group];
        for (int64_t i = 0; i < group; ++i) {
            for (int lane = 0; lane < W; ++lane) tile[i][lane] = straight[lane * group + i];
            tile[i] = tile[i] * signs[i];
        }
        transform_down(tile);
        for (int64_t i = 0; i < group; ++i)
            for (int lane = 0; lane < W; ++lane) straight[lane * group + i] = tile[i][lane] * 0.25f;
        for (int64_t i = 0; i < tiles * group; i += W) store(out + row * columns + j + i, load(straight + i));
    }
    return magnitudes(columns, out + row * columns, vf{});
}

template <class T>
float hadamard(const Numbers<const T>& x, bool down, int negative, bf16* out, int threads) {
    float signs[group];
    for (int i = 0; i < group; ++i) signs[i] = negative >> i & 1 ? -1.0f : 1.0f;
    return largest_of_rows(x.rows, group, threads, [&](int64_t row, int64_t rows) {
        if (down) return hadamard_down(x, signs, out, row);
        vf most = {};
        for (int64_t i = row; i < row + rows; ++i) most = max(hadamard_along(x, signs, out, i), most);
        return most;
    });
}

}  // namespace
}  // namespace seqloom

// `negative`: bits say which places of a tile change their sign. `amax` becomes the largest magnitude that is written.
#define SEQLOOM_HADAMARD(T, NAME)                                                                                      \
    extern "C" void seqloom_quantize_hadamard_##NAME(const T* x, int64_t rows, int64_t columns, int64_t apart,         \
                                                     int32_t down, int32_t negative, seqloom::bf16* out, float* amax,  \
                                                     int32_t threads) {                                                \
        *amax = seqloom::hadamard<T>({x, rows, columns, apart}, down, negative, out, threads);                         \
    }

SEQLOOM_HADAMARD(float, f32)
SEQLOOM_HADAMARD(seqloom::bf16, bf16)
