// What the tests ask of threads.h.
#include <pthread.h>

#include <cstring>

#include "threads.h"

using namespace seqloom;

// Every task counts its runs; the work of one is as long as its number says.
extern "C" void count_runs(int64_t tasks, int32_t* runs, int32_t threads) {
    parallel_for(tasks, threads, [&](int64_t i) {
        volatile int64_t spent = 0;
        for (int64_t j = 0; j < i % 7 * 100; ++j) spent = spent + 1;
        __atomic_fetch_add(&runs[i], 1, __ATOMIC_RELAXED);
    });
}

// Sums of blocks, added up in their order.
extern "C" double sum(const float* x, int64_t n, int64_t block, int32_t threads) {
    const int64_t blocks = (n + block - 1) / block;
    auto* partial = static_cast<double*>(scratch(blocks * sizeof(double), 4));
    parallel_for(blocks, threads, [&](int64_t b) {
        double total = 0;
        for (int64_t i = b * block; i < n && i < (b + 1) * block; ++i) total += x[i];
        partial[b] = total;
    });
    double total = 0;
    for (int64_t b = 0; b < blocks; ++b) total += partial[b];
    return total;
}

// Tasks that share out tasks of their own; counts the runs of each pair, and the pairs that changed the thread.
extern "C" void nested(int64_t outer, int64_t inner, int32_t* runs, int32_t* strayed, int32_t threads) {
    parallel_for(outer, threads, [&](int64_t i) {
        const pthread_t here = pthread_self();
        parallel_for(inner, threads, [&](int64_t j) {
            runs[i * inner + j] += 1;
            if (!pthread_equal(here, pthread_self())) __atomic_fetch_add(strayed, 1, __ATOMIC_RELAXED);
        });
    });
}

// Every task waits for the other, so this ends only if two threads work at once; gives up after a second of tries.
extern "C" int32_t meet() {
    int32_t here[2] = {0, 0}, met = 0;
    parallel_for(2, 2, [&](int64_t i) {
        __atomic_store_n(&here[i], 1, __ATOMIC_SEQ_CST);
        for (int64_t tries = 0; tries < 1'000'000'000; ++tries)
            if (__atomic_load_n(&here[1 - i], __ATOMIC_SEQ_CST)) {
                __atomic_fetch_add(&met, 1, __ATOMIC_SEQ_CST);
                return;
            }
    });
    return met;
}

// Fills scratch memory of one size and asks for another; says whether what was promised holds.
extern "C" int32_t scratch_works(int64_t bytes, int64_t more) {
    bool aligned = true;
    for (int slot = 0; slot < scratch_slots; ++slot) {
        void* memory = scratch(bytes, slot);
        aligned &= reinterpret_cast<uintptr_t>(memory) % 64 == 0;
        std::memset(memory, slot, bytes);
    }
    bool kept = true;
    for (int slot = 1; slot < scratch_slots; ++slot) {
        void* before = scratch(bytes, slot);
        scratch(more, slot - 1);
        kept &= scratch(bytes, slot) == before && static_cast<char*>(before)[bytes - 1] == slot;
    }
    return aligned && kept;
}

extern "C" float first_of_scratch() { return *static_cast<float*>(scratch(sizeof(float), 5)); }
