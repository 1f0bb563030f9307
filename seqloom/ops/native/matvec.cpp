// y = x W^T for a few rows x against a large W, where the time goes into reading W once; see few_rows.h.
#include "few_rows.h"
#include "lanes.h"
#include "threads.h"

namespace seqloom {
namespace {

constexpr int64_t task_bytes = 1 << 18;  // of weights: long streams, and enough tasks for some threads

// x [m, k] and y [m, n] are contiguous, the rows of w [n, k] are `ldw` apart.
template <class Weights, class T>
void matvec(const void* x, const void* w, void* y, int64_t m, int64_t n, int64_t k, int64_t ldw, int32_t threads) {
    using Stored = typename Weights::Stored;
    int64_t ldx = arranged_width<Weights>(k);
    float* arranged = static_cast<float*>(scratch(m * ldx * sizeof(float), 4));
    for (int64_t row = 0; row < m; ++row)
        arrange<Weights>(static_cast<const T*>(x) + row * k, k, arranged + row * ldx);
    int64_t share = std::max<int64_t>(task_bytes / (sizeof(Stored) * std::max<int64_t>(k, 1)), 12);
    parallel_for((n + share - 1) / share, threads, [=](int64_t task) {
        int64_t first = task * share, count = std::min(share, n - first);
        float* sums = static_cast<float*>(scratch(m * count * sizeof(float), 5));
        few_rows<Weights>(m, count, k, arranged, ldx, static_cast<const Stored*>(w) + first * ldw, ldw, sums, count);
        for (int64_t row = 0; row < m; ++row) {
            T* to = static_cast<T*>(y) + row * n + first;
            each_vector(count, [&](int64_t i, auto lanes) { store(to + i, load(sums + row * count + i, lanes), lanes); });
        }
    });
}

}  // namespace
}  // namespace seqloom

using namespace seqloom;

// x and y are FP32, and so are the weights.
extern "C" void seqloom_matvec_f32(const void* x, const void* w, void* y, int64_t m, int64_t n, int64_t k, int64_t ldw,
                                   int32_t threads) {
    matvec<Fp32, float>(x, w, y, m, n, k, ldw, threads);
}

// x, y and the weights are BF16.
extern "C" void seqloom_matvec_bf16(const void* x, const void* w, void* y, int64_t m, int64_t n, int64_t k, int64_t ldw,
                                    int32_t threads) {
    matvec<Bf16, bf16>(x, w, y, m, n, k, ldw, threads);
}

// x and y are FP32, the weights BF16.
extern "C" void seqloom_matvec_f32_widened(const void* x, const void* w, void* y, int64_t m, int64_t n, int64_t k,
                                           int64_t ldw, int32_t threads) {
    matvec<Bf16, float>(x, w, y, m, n, k, ldw, threads);
}

// x and y are BF16, the weights FP32, which are rounded to BF16 as they are read.
extern "C" void seqloom_matvec_bf16_rounded(const void* x, const void* w, void* y, int64_t m, int64_t n, int64_t k,
                                            int64_t ldw, int32_t threads) {
    matvec<RoundedToBf16, bf16>(x, w, y, m, n, k, ldw, threads);
}
