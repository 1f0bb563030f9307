// The peak of one core: fused multiply-adds on registers alone, in enough chains that none waits for another.
#include "../seqloom/ops/native/simd.h"

using namespace seqloom;

constexpr int CHAINS = 12;  // latency times units of any processor in use is below this

// Returns the chains' sum, so that nothing can be left out; 2 * CHAINS * W * rounds operations.
extern "C" float seqloom_benchmark_fma(int64_t rounds) {
    vf chain[CHAINS];
    for (int i = 0; i < CHAINS; ++i) chain[i] = broadcast(0.001f * i);
    vf a = broadcast(0.999f), b = broadcast(0.001f);
    for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 12
        for (int i = 0; i < CHAINS; ++i) chain[i] = fma(chain[i], a, b);
    }
    vf total = chain[0];
    for (int i = 1; i < CHAINS; ++i) total += chain[i];
    return sum(total);
}

extern "C" int32_t seqloom_benchmark_fma_operations() { return 2 * CHAINS * W; }

// Does nothing: what calling costs.
extern "C" void seqloom_benchmark_nothing(const float*, int64_t) {}
