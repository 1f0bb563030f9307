// Rounding a matrix to few bits and back, its random Hadamard transform, and how far it moved; see quantize.py.
//
// A matrix is cut into strips: one row of blocks, some columns wide. Of a strip the largest magnitudes are found, scales
// follow from them in vectors of blocks, and the numbers are rounded while they are still in the cache. Blocks of one
// column have a scale for every lane; those of sixteen and more share one.
#include <algorithm>

#include "philox.h"
#include "small_floats.h"
#include "threads.h"

namespace seqloom {
namespace {

constexpr int slot_strip = 4, slot_sums = 5;
constexpr int64_t group = 16;          // numbers that share a counter of Philox, and points of the transform
constexpr int64_t strip_columns = 512, column_columns = 256;  // of a strip: about, and where every column has scales

int64_t ceiling(int64_t n, int64_t part) { return (n + part - 1) / part; }
int64_t padded(int64_t n) { return ceiling(n, W) * W; }

template <class T>
struct Matrix {
    T* data;
    int64_t rows, columns, apart;

    T* at(int64_t row, int64_t column) const { return data + row * apart + column; }
};

// The largest magnitude of n numbers; NaN is none.
template <class T>
[[gnu::always_inline]] inline vf magnitudes(int64_t n, const T* x, vf most) {
    vf others[3] = {};
    int64_t i = 0;
    for (; i + 4 * W <= n; i += 4 * W) {
        most = max(abs(load(x + i)), most);
        for (int part = 0; part < 3; ++part) others[part] = max(abs(load(x + i + (part + 1) * W)), others[part]);
    }
    for (; i + W <= n; i += W) most = max(abs(load(x + i)), most);
    if (i < n) most = max(abs(load(x + i, n - i)), most);
    return max(max(most, others[0]), max(others[1], others[2]));
}

// body(row, column, rows, columns) for the tiles of a matrix
template <class F>
void each_tile(int64_t rows, int64_t columns, int64_t height, int64_t width, int threads, F&& body) {
    const int64_t across = ceiling(columns, width);
    parallel_for(ceiling(rows, height) * across, threads, [&](int64_t task) {
        const int64_t row = task / across * height, column = task % across * width;
        body(row, column, std::min(height, rows - row), std::min(width, columns - column));
    });
}

// body(row, rows, most) raises `most` by what it finds.
template <class F>
float largest_of_rows(int64_t rows, int64_t share, int threads, F&& body) {
    const int64_t tasks = ceiling(rows, share);
    vf* found = static_cast<vf*>(scratch(tasks * sizeof(vf), slot_sums));
    parallel_for(tasks, threads, [&](int64_t task) {
        const int64_t row = task * share;
        found[task] = body(row, std::min(share, rows - row));
    });
    vf most = {};
    for (int64_t task = 0; task < tasks; ++task) most = max(found[task], most);
    return max(most);
}

template <class T>
float amax(const Matrix<const T>& x, int threads) {
    return largest_of_rows(x.rows, ceiling(1 << 14, x.columns + 1), threads, [&](int64_t row, int64_t rows) {
        vf most = {};
        for (int64_t i = row; i < row + rows; ++i) most = magnitudes(x.columns, x.at(i, 0), most);
        return most;
    });
}

// The Hadamard transform; bits of `negative` are the places of a tile whose sign is changed ------------------------------------------------------------------------------------------------

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
vf hadamard_down(const Matrix<const T>& x, const float* signs, bf16* out, int64_t row) {
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
vf hadamard_along(const Matrix<const T>& x, const float* signs, bf16* out, int64_t row) {
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
float hadamard(const Matrix<const T>& x, bool down, int negative, bf16* out, int threads) {
    float signs[group];
    for (int i = 0; i < group; ++i) signs[i] = negative >> i & 1 ? -1.0f : 1.0f;
    return largest_of_rows(x.rows, group, threads, [&](int64_t row, int64_t rows) {
        if (down) return hadamard_down(x, signs, out, row);
        vf most = {};
        for (int64_t i = row; i < row + rows; ++i) most = max(hadamard_along(x, signs, out, i), most);
        return most;
    });
}

// Random numbers --------------------------------------------------------------------------------------------------------

// Numbers for one row: bits `shift` and up of words, as many as `mask` has.
struct Draws {
    const uint32_t* words;
    int shift;
    uint32_t mask;
    float unit;

    [[gnu::always_inline]] vf uniform(int64_t j) const {
        vu word;
        std::memcpy(&word, words + j, sizeof word);
        return __builtin_convertvector((vi)((word >> shift) & mask), vf) * unit;
    }
};

// Where the numbers of a strip come from. `down`: the contraction axis runs down the rows.
class Random {
public:
    Random(int bits, uint64_t key, bool down, int64_t contraction)
        : bits_(bits), key_(key), down_(down), groups_(ceiling(contraction, group)) {}

    bool wanted() const { return bits_ > 0; }
    int64_t words(int64_t columns) const {
        return !wanted() ? 0 : down_ ? group * padded(columns) : padded(columns) + group * W;
    }

    // Numbers for a row of a strip; `words` keeps those of sixteen rows where one counter serves them.
    Draws of_row(int64_t row, int64_t first_row, int64_t column, int64_t columns, uint32_t* words) const {
        const float unit = bits_ == 8 ? 0x1p-8f : 0x1p-24f;
        if (!down_) {
            along(row, column, columns, words);
            return {words, bits_ == 8 ? 0 : 8, bits_ == 8 ? 0xffu : 0xffffffu, unit};
        }
        const int64_t apart = padded(columns), place = row % group;
        if (place == 0 || row == first_row) down(row / group, column, columns, words);
        if (bits_ == 8) return {words + place / 4 * apart, int(place % 4 * 8), 0xffu, unit};
        return {words + place * apart, 8, 0xffffffu, unit};
    }

private:
    // Words [calls][4] for the counters first + lane * step.
    [[gnu::always_inline]] void call(int64_t first, int64_t step, vu* words) const {
        vu low, high;
        for (int lane = 0; lane < W; ++lane) {
            const uint64_t counter = uint64_t(first + lane * step);
            low[lane] = uint32_t(counter);
            high[lane] = uint32_t(counter >> 32);
        }
        if (bits_ == 8) return philox(key_, low, high, 0, words);
        for (int i = 0; i < 4; ++i) philox(key_, low, high, 1 + i, words + 4 * i);
    }

    void down(int64_t block, int64_t column, int64_t columns, uint32_t* out) const {
        const int64_t apart = padded(columns);
        const int count = bits_ == 8 ? 4 : 16;
        for (int64_t j = 0; j < columns; j += W) {
            vu words[group];
            call((column + j) * groups_ + block, groups_, words);
            for (int i = 0; i < count; ++i) std::memcpy(out + i * apart + j, &words[i], sizeof(vu));
        }
    }

    // One word for each number: a byte of a word, or all of one.
    void along(int64_t row, int64_t column, int64_t columns, uint32_t* out) const {
        const int count = bits_ == 8 ? 4 : 16;
        for (int64_t j = 0; j < columns; j += group * W) {
            vu words[group];
            call(row * groups_ + (column + j) / group, 1, words);
            uint32_t turned[group * W];
            for (int lane = 0; lane < W; ++lane)
                for (int i = 0; i < count; ++i) turned[lane * count + i] = words[i][lane];
            if (bits_ == 8)
                for (int i = 0; i < group; ++i) widen(reinterpret_cast<const uint8_t*>(turned) + i * W, out + j + i * W);
            else
                std::memcpy(out + j, turned, sizeof turned);
        }
    }

    [[gnu::always_inline]] static void widen(const uint8_t* bytes, uint32_t* to) {
        typedef uint8_t vb __attribute__((vector_size(W)));
        vb narrow;
        std::memcpy(&narrow, bytes, sizeof narrow);
        const vu wide = __builtin_convertvector(narrow, vu);
        std::memcpy(to, &wide, sizeof wide);
    }

    int bits_;
    uint64_t key_;
    bool down_;
    int64_t groups_;
};

// Rounding --------------------------------------------------------------------------------------------------------------

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
        return each_vector(columns, [&](int64_t j, auto lanes) { rounded(j, lanes, load(encode + j), load(decode + j)); });
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

// Blocks of height x width numbers, 0 for the whole axis. x and y may be the same memory: a strip is read before it is written.
template <class T, class U>
void round_all(const Matrix<const T>& x, U* y, int64_t height, int64_t width, const Format& format,
               const ScaleRule& rule, const Random& random, int threads) {
    const bool per_tensor = !height && !width;
    if (!width) width = std::max<int64_t>(x.columns, 1);
    const int64_t strip = per_tensor ? group : height ? std::min(height, x.rows) : x.rows;
    const int64_t wide = per_tensor ? strip_columns : width == 1 ? column_columns : ceiling(strip_columns, width) * width;
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

// How far numbers moved ---------------------------------------------------------------------------------------------------

// Sums of |x - values scale| / |x| over the nonzero x of blocks of height x width numbers, and their counts. Stretches of
// rows are summed by themselves, then in their order.
template <class T, class U>
void relative_errors(const Matrix<const T>& x, const Matrix<const U>& values, float scale, int64_t height,
                     int64_t width, float* sums, int64_t* counts, int threads) {
    const int64_t across = ceiling(x.columns, width), pieces = ceiling(height, group);
    const int64_t tasks = ceiling(x.rows, height) * pieces;
    double* parts = static_cast<double*>(scratch(tasks * across * 2 * sizeof(double), slot_sums));
    std::fill_n(parts, tasks * across * 2, 0.0);
    parallel_for(tasks, threads, [&](int64_t task) {
        const int64_t top = task / pieces * height, first = top + task % pieces * group;
        const int64_t last = std::min({first + group, top + height, x.rows});
        for (int64_t row = first; row < last; ++row)
            for (int64_t block = 0; block < across; ++block) {
                const int64_t column = block * width;
                vi nonzero = {};
                const float sum = sum_of(std::min(width, x.columns - column), [&](int64_t i, auto lanes) {
                    const vf number = load(x.at(row, column + i), lanes);
                    const vf moved = abs(number - load(values.at(row, column + i), lanes) * scale);
                    nonzero -= (vi)(number != 0.0f);
                    return number != 0.0f ? moved / abs(number) : vf{};
                });
                double* part = parts + (task * across + block) * 2;
                part[0] += sum;
                for (int lane = 0; lane < W; ++lane) part[1] += nonzero[lane];
            }
    });
    for (int64_t block = 0; block < tasks / pieces * across; ++block) {
        double sum = 0, count = 0;
        for (int64_t piece = 0; piece < pieces; ++piece) {
            const double* part = parts + ((block / across * pieces + piece) * across + block % across) * 2;
            sum += part[0];
            count += part[1];
        }
        sums[block] = float(sum);
        counts[block] = int64_t(count);
    }
}

}  // namespace
}  // namespace seqloom

#define SEQLOOM_QUANTIZE_FROM(T, NAME)                                                                                  \
    extern "C" void seqloom_quantize_amax_##NAME(const T* x, int64_t rows, int64_t columns, int64_t apart, float* amax, \
                                                 int32_t threads) {                                                    \
        *amax = seqloom::amax<T>({x, rows, columns, apart}, threads);                                                  \
    }                                                                                                                  \
    extern "C" void seqloom_quantize_hadamard_##NAME(const T* x, int64_t rows, int64_t columns, int64_t apart,         \
                                                     int32_t down, int32_t negative, seqloom::bf16* out,              \
                                                     float* amax, int32_t threads) {                                   \
        *amax = seqloom::hadamard<T>({x, rows, columns, apart}, down, negative, out, threads);                         \
    }

// `tensor`: the largest magnitude before, the multiplier that decodes the tensor afterwards.
#define SEQLOOM_QUANTIZE(T, U, NAME)                                                                                  \
    extern "C" void seqloom_quantize_round_##NAME(                                                                    \
        const T* x, int64_t rows, int64_t columns, int64_t apart, U* values, float* tensor, int64_t height,           \
        int64_t width, int32_t element, int32_t kind, int32_t bits, int64_t key, int32_t down, int32_t threads) {     \
        const seqloom::Format format(element);                                                                       \
        const seqloom::ScaleRule rule(kind, !height && !width, format, *tensor);                                      \
        const seqloom::Random random(bits, uint64_t(key), down, down ? rows : columns);                               \
        seqloom::round_all<T, U>({x, rows, columns, apart}, values, height, width, format, rule, random, threads);    \
        *tensor = rule.tensor();                                                                                      \
    }                                                                                                                 \
    extern "C" void seqloom_quantize_errors_##NAME(const T* x, int64_t rows, int64_t columns, int64_t apart,          \
                                                   const U* values, int64_t values_apart, const float* scale,         \
                                                   int64_t height, int64_t width, float* sums, int64_t* counts,       \
                                                   int32_t threads) {                                                 \
        seqloom::relative_errors<T, U>({x, rows, columns, apart}, {values, rows, columns, values_apart}, *scale,      \
                                       height, width, sums, counts, threads);                                         \
    }

SEQLOOM_QUANTIZE_FROM(float, f32)
SEQLOOM_QUANTIZE_FROM(seqloom::bf16, bf16)
SEQLOOM_QUANTIZE(float, float, f32_f32)
SEQLOOM_QUANTIZE(float, seqloom::bf16, f32_bf16)
SEQLOOM_QUANTIZE(seqloom::bf16, float, bf16_f32)
SEQLOOM_QUANTIZE(seqloom::bf16, seqloom::bf16, bf16_bf16)
