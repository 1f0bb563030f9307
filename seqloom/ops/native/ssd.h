// What the passes of the scan share: how its arguments lie in memory, one piece of a row laid out for products, and
// products of triangular matrices. The equations stand in ops/ssd.py.
//
// A piece is Q tokens of one row, of one group and some of its heads. Everything a head needs of it is copied into
// scratch as FP32 matrices that stay in the second cache. Their rows are an odd number of cache lines apart, so that a
// column does not fall on the same few places of the first cache, and are zero from their width up to whole vectors.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>

#include "gemm.h"
#include "simd.h"
#include "threads.h"
#include "transpose.h"

namespace seqloom::scan {

using seqloom::load;  // beside those for doubles
using seqloom::store;
using seqloom::sum;

typedef double vd __attribute__((vector_size(W * 4)));
typedef float half_vf __attribute__((vector_size(W * 2)));

constexpr int kSlot = 4;           // of scratch
constexpr int64_t kMostHeads = 8;  // that a task works on side by side

struct Shape {
    int64_t rows, tokens, heads, width, groups, state, chunk;

    int64_t pieces() const { return (tokens + chunk - 1) / chunk; }
    // Parts that the heads of a group are cut into, and the heads of such a part.
    int64_t blocks() const { return (heads / groups + kMostHeads - 1) / kMostHeads; }
    int64_t block_heads() const { return (heads / groups + blocks() - 1) / blocks(); }
    int64_t tasks() const { return rows * groups * blocks(); }
};

// [row, token, head or group, last axis], the last axis without gaps.
template <class E>
struct Sequence {
    E* data;
    int64_t row, token, head;

    E* at(int64_t r, int64_t t, int64_t h) const { return data + r * row + t * token + h * head; }
};

// Step sizes: softplus(raw + bias), or raw itself where there is no bias; and the decay rate of every head.
struct Steps {
    Sequence<const float> raw;
    const float *bias, *rates;
};

struct Matrix {
    float* data;
    int64_t apart;  // of two rows

    float* row(int64_t i) const { return data + i * apart; }
};

inline vd load(const double* from) {
    vd x;
    std::memcpy(&x, from, sizeof x);
    return x;
}
inline void store(double* to, vd x) { std::memcpy(to, &x, sizeof x); }
inline double sum(vd x) {
    double total = x[0];
    for (int i = 1; i < W / 2; ++i) total += x[i];
    return total;
}

// Half as many floats as in a `vf`, as doubles.
inline vd load_doubles(const float* from) {
    half_vf x;
    std::memcpy(&x, from, sizeof x);
    return __builtin_convertvector(x, vd);
}

// place, place + 1, ...
inline vi lanes(int64_t place) {
    vi x;
    for (int i = 0; i < W; ++i) x[i] = int32_t(place) + i;
    return x;
}

inline int64_t whole(int64_t columns) { return (columns + W - 1) / W * W; }

// Memory handed out piece by piece. Without any, it only counts.
class Arena {
public:
    explicit Arena(void* memory = nullptr) : next_(static_cast<char*>(memory)), counting_(!memory) {}

    template <class T>
    T* take(int64_t count) {
        const size_t bytes = (count * sizeof(T) + 63) / 64 * 64;
        T* taken = counting_ ? nullptr : reinterpret_cast<T*>(next_);
        if (!counting_) next_ += bytes;
        used_ += bytes;
        return taken;
    }
    Matrix matrix(int64_t rows, int64_t columns) {
        const int64_t lines = (columns + 15) / 16, apart = 16 * (lines + (lines > 1 && lines % 2 == 0));
        return {take<float>(rows * apart), apart};
    }
    size_t used() const { return used_; }

private:
    char* next_;
    bool counting_;
    size_t used_ = 0;
};

// An object whose constructor takes all its memory from an arena, in scratch of this thread.
template <class T>
T in_scratch(const Shape& shape) {
    Arena counted;
    T(counted, shape);
    Arena arena(scratch(counted.used(), kSlot));
    return T(arena, shape);
}

// Products ----------------------------------------------------------------------------------------------------------

// The left side of a product; element (i, l) lies at data[i * row + l * step].
struct Left {
    const float* data;
    int64_t row, step;
};

inline Left plain(Matrix a) { return {a.data, a.apart, 1}; }
inline Left transposed(Matrix a) { return {a.data, 1, a.apart}; }

// Which terms the sum of row i has: all, those up to i, or those from i on. The others must be zero where they share a
// tile with row i, that is up to kRows places off the diagonal.
enum class Terms { all, up_to_row, from_row };

template <Terms terms = Terms::all>
void product(int64_t m, int64_t n, int64_t k, Left a, Matrix b, Matrix c, bool accumulate) {
    using namespace gemm_parts;
    n = whole(n);
    for (int64_t j = 0; j < n; j += kColumns)
        for (int64_t i = 0; i < m; i += kRows) {
            const int64_t rows = std::min<int64_t>(kRows, m - i);
            const int64_t from = terms == Terms::from_row ? i : 0;
            const int64_t to = terms == Terms::up_to_row ? std::min(k, i + rows) : k;
            tile_of(int(rows), int(std::min<int64_t>(kColumns, n - j)), to - from, a.data + i * a.row + from * a.step,
                    a.row, a.step, b.row(from) + j, b.apart, c.row(i) + j, c.apart, accumulate);
        }
}

// The elements of a square product on and below the diagonal; some above it are written too.
inline void lower_product(int64_t m, int64_t k, Left a, Matrix b, Matrix c) {
    using namespace gemm_parts;
    for (int64_t j = 0; j < m; j += kColumns)
        for (int64_t i = j / kRows * kRows; i < m; i += kRows)
            tile_of(int(std::min<int64_t>(kRows, m - i)), int(std::min<int64_t>(kColumns, whole(m) - j)), k,
                    a.data + i * a.row, a.row, a.step, b.data + j, b.apart, c.row(i) + j, c.apart, false);
}

// Zeros behind the rows of a matrix up to whole vectors.
inline void clear_tails(int64_t rows, int64_t columns, Matrix x) {
    for (int64_t i = 0; i < rows; ++i) std::fill(x.row(i) + columns, x.row(i) + whole(columns), 0.0f);
}

// Rows ----------------------------------------------------------------------------------------------------------------

// f(place, count): whole vectors first, then what is left.
template <class F>
[[gnu::always_inline]] inline void by_vectors(int64_t columns, F&& f) {
    int64_t j = 0;
    for (; j + W <= columns; j += W) f(j, W);
    if (j < columns) f(j, columns - j);
}

template <class E>
[[gnu::always_inline]] inline vf load_some(const E* from, int64_t count) {
    return count == W ? load(from) : load(from, count);
}

template <class E>
[[gnu::always_inline]] inline void store_some(E* to, vf x, int64_t count) {
    count == W ? store(to, x) : store(to, x, count);
}

// to = factor * from, zero behind it up to whole vectors
template <class E>
[[gnu::always_inline]] inline void copy_row(int64_t columns, const E* from, float factor, float* to) {
    by_vectors(columns, [&](int64_t j, int64_t count) { store(to + j, load_some(from + j, count) * factor); });
}

// Asks for a row that will be read, or written, soon: rows of a head lie too far apart for the processor to guess.
template <bool written = false, class E>
[[gnu::always_inline]] inline void fetch_row(int64_t columns, const E* row) {
    for (int64_t j = 0; j < columns; j += 64 / int64_t(sizeof(E))) __builtin_prefetch(row + j, written);
}

template <class E>
void copy(int64_t rows, int64_t columns, const E* from, int64_t apart, Matrix to) {
    for (int64_t i = 0; i < rows; ++i) copy_row(columns, from + i * apart, 1, to.row(i));
}

template <class E>
void copy_out(int64_t rows, int64_t columns, Matrix from, E* to, int64_t apart) {
    for (int64_t i = 0; i < rows; ++i)
        by_vectors(columns, [&](int64_t j, int64_t count) {
            store_some(to + i * apart + j, load(from.row(i) + j), count);
        });
}

inline float dot(int64_t columns, const float* a, const float* b) {
    vf total = {};
    for (int64_t j = 0; j < columns; j += W) total = fma(load(a + j), load(b + j), total);
    return sum(total);
}

inline void clear(int64_t rows, int64_t columns, Matrix x) {
    for (int64_t i = 0; i < rows; ++i) std::fill_n(x.row(i), whole(columns), 0.0f);
}

inline void scale(int64_t rows, int64_t columns, float factor, Matrix x) {
    for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < columns; j += W) store(x.row(i) + j, load(x.row(i) + j) * factor);
}

// Pieces ------------------------------------------------------------------------------------------------------------

// What both passes are given.
template <class E>
struct Inputs {
    Shape shape;
    Sequence<const E> x, b, c;
    Steps steps;
    const float* skip;         // of every head; null for none
    const float* state;        // [rows, heads, width, state]; null for zeros
    const int32_t* documents;  // [rows, tokens]; null for one a row

    // `sizes`: the seven of the shape, then row, token and head strides of x, b, c and the raw steps.
    Inputs(const int64_t* sizes, const E* x, const E* b, const E* c, const float* raw, const float* bias,
           const float* rates, const float* skip, const float* state, const int32_t* documents)
        : shape{sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], sizes[6]},
          x{x, sizes[7], sizes[8], sizes[9]},
          b{b, sizes[10], sizes[11], sizes[12]},
          c{c, sizes[13], sizes[14], sizes[15]},
          steps{{raw, sizes[16], sizes[17], sizes[18]}, bias, rates},
          skip(skip),
          state(state),
          documents(documents) {}

    const int32_t* documents_of(int64_t row) const { return documents ? documents + row * shape.tokens : nullptr; }
    // Where a state lies among [rows, heads, width, state].
    int64_t state_place(int64_t row, int64_t head) const {
        return (row * shape.heads + head) * shape.width * shape.state;
    }
    // Where the state before a piece lies among what the forward pass notes: all but the first of a row.
    int64_t note_place(int64_t row, int64_t head, int64_t piece) const {
        return ((row * shape.heads + head) * (shape.pieces() - 1) + piece - 1) * shape.width * shape.state;
    }
};

// y = scanned + skip * x, for one token of one head
template <class E>
void add_skip(const Inputs<E>& in, int64_t row, int64_t token, int64_t head, const float* scanned, E* y) {
    const vf skip = broadcast(in.skip ? in.skip[head] : 0.0f);
    const E* x = in.x.at(row, token, head);
    by_vectors(in.shape.width, [&](int64_t p, int64_t some) {
        const vf result = load(scanned + p);
        store_some(y + p, in.skip ? fma(load_some(x + p, some), skip, result) : result, some);
    });
}

// Some heads of one group of one row: what a thread works on at a time.
struct Task {
    int64_t row, group, block, first, last;  // heads in [first, last)

    Task(const Shape& shape, int64_t number) {
        const int64_t heads = shape.heads / shape.groups;
        block = number % shape.blocks();
        group = number / shape.blocks() % shape.groups;
        row = number / shape.blocks() / shape.groups;
        first = group * heads + std::min(heads, block * shape.block_heads());
        last = group * heads + std::min(heads, (block + 1) * shape.block_heads());
    }

    // Where the piece of the next head begins, and that head: in the same piece, or in the one `stride` further. That may
    // lie outside the row; it is for `fetch_row`, which reads nothing.
    std::pair<int64_t, int64_t> after(int64_t head, int64_t start, int64_t stride) const {
        return head + 1 < last ? std::pair(start, head + 1) : std::pair(start + stride, first);
    }
};

// Which tokens of a piece see which: those of their own document that are not later.
struct Borders {
    int64_t tokens;
    int64_t carried;  // tokens before the first reset: they see the state that enters the piece
    int64_t last;     // first token of the document that reaches the end
    int64_t* first;   // of every token: the first token it sees
    bool* padding;

    Borders(Arena& arena, const Shape& shape)
        : first(arena.take<int64_t>(shape.chunk)), padding(arena.take<bool>(shape.chunk)) {}

    bool resets(int64_t i) const { return i >= carried && first[i] == i; }

    // `documents` of a row, or null; tokens from `start` on.
    void find(const int32_t* documents, int64_t start, int64_t count) {
        tokens = carried = count;
        last = 0;
        for (int64_t i = 0; i < count; ++i) {
            const int64_t t = start + i;
            padding[i] = documents && documents[t] < 0;
            if (documents && t > 0 && documents[t] != documents[t - 1] && !padding[i]) {
                carried = std::min(carried, i);
                last = i;
            }
            first[i] = last;
        }
    }
};

// The step sizes of a head in a piece, and the decays that follow from them; every decay lies in [0, 1].
struct Decays {
    float *steps, *slopes;  // dt, and its derivative after the raw number
    float *coarse, *fine;   // α = coarse + fine: α may be thousands where the differences that matter are below one
    float* entering;        // exp(α_i), from the state before the piece to token i
    float* leaving;         // exp(α_Q − α_j), from token j to the state after the piece
    float across;           // from the state before to the state after

    Decays(Arena& arena, const Shape& shape) {
        for (float** part : {&steps, &slopes, &coarse, &fine, &entering, &leaving})
            *part = arena.take<float>(whole(shape.chunk));
    }

    void find(const Steps& from, int64_t row, int64_t head, int64_t start, const Borders& borders) {
        const int64_t count = borders.tokens;
        for (int64_t i = 0; i < whole(count); ++i) steps[i] = i < count ? *from.raw.at(row, start + i, head) : 0;
        for (int64_t i = 0; i < count; i += W) {
            vf x = load(steps + i);
            if (from.bias) x += from.bias[head];
            store(slopes + i, from.bias ? sigmoid(x) : broadcast(1.0f));
            store(steps + i, from.bias ? softplus(x) : x);
        }
        double alpha = 0;  // summed within each document, so that not even its rounding depends on another
        for (int64_t i = 0; i < count; ++i) {
            if (borders.padding[i]) steps[i] = slopes[i] = 0;
            if (borders.first[i] == i) alpha = 0;
            alpha += steps[i] * from.rates[head];
            coarse[i] = float(alpha);
            fine[i] = float(alpha - coarse[i]);
        }
        for (int64_t i = count; i < whole(count); ++i) coarse[i] = fine[i] = 0;
        for (int64_t i = 0; i < count; i += W) {
            const vf decay = exp(load(coarse + i));
            store(entering + i, fma(decay, load(fine + i), decay));
            store(leaving + i, between(count - 1, i));
        }
        across = borders.carried == count ? entering[count - 1] : 0;
        std::fill(entering + borders.carried, entering + count, 0.0f);
        std::fill(leaving, leaving + borders.last, 0.0f);
    }

    // exp(α_i − α_j) for W places from j on; meaningful where they are seen by i.
    [[gnu::always_inline]] vf between(int64_t i, int64_t j) const {
        return exp(min((coarse[i] - load(coarse + j)) + fine[i] - load(fine + j), vf{}));
    }
};

}  // namespace seqloom::scan
