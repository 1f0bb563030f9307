// Rounding a matrix to few bits and back; see quantize.py.
//
// A matrix is cut into strips: one row of blocks, some columns wide. Of a strip the largest magnitudes are found,
// scales follow from them in vectors of blocks, and the numbers are rounded while they are still in the cache. Blocks
// of one column have a scale for every lane; those of sixteen and more share one.
#include "draws.h"
#include "magnitudes.h"
#include "small_floats.h"

namespace seqloom {
namespace {

constexpr int64_t strip_columns = 512, column_columns = 256;  // of a strip: about, and where every column has scales

template <class T>
float amax(const Numbers<const T>& x, int threads) {
    return largest_of_rows(x.rows, ceiling(1 << 14, x.columns + 1), threads, [&](int64_t row, int64_t rows) {
        vf most = {};
        for (int64_t i = row; i < row + rows; ++i) most = magnitudes(x.columns, x.at(i, 0), most);
        return most;
    });
}

// A row of a strip, whose blocks of `width` columns have these scales.
template <class T, class U, bool has_nan, bool random>
void round_row(const T* x, U* y, int64_t columns, int64_t width, const float* encode, const float* decode,
               const Draws& draws, const Format& format) {
    auto rounded = [&](int64_t j, auto lanes, vf up, vf down) {
        const vf z = load(x + j, lanes) * up;
        const vf q = random ? round_stochastic<has_nan>(z, draws.uniform(j), format)
                            : round_nearest<has_nan>(z, format);
        store(y + j, q * down, lanes);
    };
    if (width == 1)
        return each_vector(
            columns, [&](int64_t j, auto lanes) { rounded(j, lanes, load(encode + j), load(decode + j)); });
    for (int64_t j = 0; j < columns; j += width, ++encode, ++decode) {
        const vf up = broadcast(*encode), down = broadcast(*decode);
        each_vector(std::min(width, columns - j), [&](int64_t i, auto lanes) { rounded(j + i, lanes, up, down); });
    }
}

template <class T, class U>
using RoundRow = void (*)(const T*, U*, int64_t, int64_t, const float*, const float*, const Draws&, const Format&);

template <class T, class U>
RoundRow<T, U> row_rounding(bool has_nan, bool random) {
    if (random) return has_nan ? round_row<T, U, true, true> : round_row<T, U, false, true>;
    return has_nan ? round_row<T, U, true, false> : round_row<T, U, false, false>;
}

// The largest magnitudes of the blocks of a strip.
template <class T>
void block_magnitudes(const T* x, int64_t apart, int64_t rows, int64_t columns, int64_t width, float* most) {
    if (width == 1) {
        std::fill_n(most, padded(columns), 0.0f);
        for (int64_t i = 0; i < rows; ++i)
            each_vector(columns, [&](int64_t j, auto lanes) {
                store(most + j, max(abs(load(x + i * apart + j, lanes)), load(most + j)));
            });
        return;
    }
    for (int64_t j = 0; j < columns; j += width) {
        vf found = {};
        for (int64_t i = 0; i < rows; ++i) found = magnitudes(std::min(width, columns - j), x + i * apart + j, found);
        *most++ = max(found);
    }
}

// Blocks of height x width numbers, 0 for the whole axis. x and y may be the same memory: a strip is read before it is
// written.
template <class T, class U>
void round_all(const Numbers<const T>& x, U* y, int64_t height, int64_t width, const Format& format,
               const ScaleRule& rule, const Random& random, int threads) {
    const bool per_tensor = !height && !width;
    if (!width) width = std::max<int64_t>(x.columns, 1);
    const int64_t strip = per_tensor ? group : height ? std::min(height, x.rows) : x.rows;
    const int64_t wide = per_tensor   ? strip_columns
                         : width == 1 ? column_columns
                                      : ceiling(strip_columns, width) * width;
    const RoundRow<T, U> round_row = row_rounding<T, U>(format.mantissa > 1, random.wanted());
    each_tile(x.rows, x.columns, std::max(strip, group), wide, threads, [&](int64_t row, int64_t column, int64_t rows,
                                                                            int64_t columns) {
        const int64_t blocks = per_tensor ? 1 : ceiling(columns, width), room = padded(blocks);
        float* most = static_cast<float*>(scratch((3 * room + random.words(columns)) * sizeof(float), slot_strip));
        float *encode = most + room, *decode = encode + room;
        uint32_t* words = reinterpret_cast<uint32_t*>(decode + room);
        encode[0] = rule.encode(), decode[0] = 1;
        for (int64_t first = row; first < row + rows; first += strip) {
            const int64_t last = std::min(first + strip, row + rows);
            if (!per_tensor) {
                block_magnitudes(x.at(first, column), x.apart, last - first, columns, width, most);
                for (int64_t b = 0; b < blocks; b += W) {
                    const Scales scales = rule(load(most + b));
                    store(encode + b, scales.encode);
                    store(decode + b, scales.decode);
                }
            }
            for (int64_t i = first; i < last; ++i) {
                const Draws draws = random.wanted() ? random.of_row(i, first, column, columns, words) : Draws{};
                round_row(x.at(i, column), y + i * x.columns + column, columns, per_tensor ? columns : width, encode,
                          decode, draws, format);
            }
        }
    });
}

}  // namespace
}  // namespace seqloom

#define SEQLOOM_QUANTIZE_AMAX(T, NAME)                                                                                 \
    extern "C" void seqloom_quantize_amax_##NAME(const T* x, int64_t rows, int64_t columns, int64_t apart,             \
                                                 float* amax, int32_t threads) {                                       \
        *amax = seqloom::amax<T>({x, rows, columns, apart}, threads);                                                  \
    }

// `tensor`: the largest magnitude before, the multiplier that decodes the tensor afterwards.
#define SEQLOOM_QUANTIZE(T, U, NAME)                                                                                   \
    extern "C" void seqloom_quantize_round_##NAME(                                                                     \
        const T* x, int64_t rows, int64_t columns, int64_t apart, U* values, float* tensor, int64_t height,            \
        int64_t width, int32_t element, int32_t kind, int32_t bits, int64_t key, int32_t down, int32_t threads) {      \
        const seqloom::Format format(element);                                                                         \
        const seqloom::ScaleRule rule(kind, !height && !width, format, *tensor);                                       \
        const seqloom::Random random(bits, uint64_t(key), down, down ? rows : columns);                                \
        seqloom::round_all<T, U>({x, rows, columns, apart}, values, height, width, format, rule, random, threads);     \
        *tensor = rule.tensor();                                                                                       \
    }

SEQLOOM_QUANTIZE_AMAX(float, f32)
SEQLOOM_QUANTIZE_AMAX(seqloom::bf16, bf16)
SEQLOOM_QUANTIZE(float, float, f32_f32)
SEQLOOM_QUANTIZE(float, seqloom::bf16, f32_bf16)
SEQLOOM_QUANTIZE(seqloom::bf16, float, bf16_f32)
SEQLOOM_QUANTIZE(seqloom::bf16, seqloom::bf16, bf16_bf16)
