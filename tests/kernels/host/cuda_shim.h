// What attention_pool.cu needs of CUDA, on the host: a thread of the CPU for every thread of a block, so that
// ThreadSanitizer sees each missing barrier and AddressSanitizer each access beyond a buffer. For tests only.
//
// Asynchronous copies happen when they are waited for and not before. Shared memory holds NaN before every block.

#pragma once

#include <pthread.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>

#define __device__
#define __global__

using std::max;
using std::min;

struct float4 {
    float x, y, z, w;
} __attribute__((aligned(16)));

struct Index {
    unsigned x = 0;
};
inline thread_local Index threadIdx, blockIdx, blockDim, gridDim;

namespace host {

// Two barriers that take turns. With one, a thread that is slow to leave it would, for ThreadSanitizer, have waited for
// whoever is at its next use already as well: a race between the two would stay unseen.
class Barrier {
public:
    explicit Barrier(int threads) {
        for (auto& one : pair) pthread_barrier_init(&one, nullptr, threads);
    }
    ~Barrier() {
        for (auto& one : pair) pthread_barrier_destroy(&one);
    }
    Barrier(const Barrier&) = delete;
    void wait(unsigned& passed) { pthread_barrier_wait(&pair[passed++ % 2]); }

private:
    pthread_barrier_t pair[2];
};

struct Cluster {
    explicit Cluster(int threads) : barrier(threads) {}
    Barrier barrier;
    std::vector<unsigned char*> shared;  // of each block
};

inline thread_local unsigned block_passed = 0, cluster_passed = 0;
inline thread_local Barrier* block = nullptr;
inline thread_local unsigned char* shared = nullptr;
inline thread_local Cluster* cluster = nullptr;
inline thread_local std::vector<std::pair<void*, const void*>> copies;
inline int missing_barrier = 0, overread = 0;  // set before any thread starts

}  // namespace host

#define MINUS_INFINITY (-INFINITY)
#define MISSING_BARRIER host::missing_barrier
#define PLANTED_OVERREAD host::overread
#define DYNAMIC_SHARED(name) unsigned char* name = host::shared

inline void __syncthreads() { host::block->wait(host::block_passed); }
inline void __threadfence() {}  // the atomics below are sequentially consistent

template <typename T>
T atomicAdd(T* at, T value) {
    return __atomic_fetch_add(at, value, __ATOMIC_SEQ_CST);
}
inline unsigned load_acquire(const unsigned* at) {
    sched_yield();  // whoever is waited for may need this core
    return __atomic_load_n(at, __ATOMIC_ACQUIRE);
}

inline void cluster_barrier() { host::cluster->barrier.wait(host::cluster_passed); }
inline float load_peer(const float* mine, int rank) {
    const auto offset = reinterpret_cast<const unsigned char*>(mine) - host::shared;
    return *reinterpret_cast<const float*>(host::cluster->shared[rank] + offset);
}

inline void copy16(void* shared, const void* global) {
    if ((reinterpret_cast<std::uintptr_t>(shared) | reinterpret_cast<std::uintptr_t>(global)) % 16) {
        std::fprintf(stderr, "copy16 of addresses that are not multiples of 16\n");
        std::abort();
    }
    host::copies.emplace_back(shared, global);
}
inline void copies_wait() {
    for (auto [to, from] : host::copies) std::memcpy(to, from, 16);
    host::copies.clear();
}

inline float max_or_nan(float a, float b) { return a != a || a > b ? a : b; }

struct Half;
struct Bfloat16;
float to_float(Half x);
float to_float(Bfloat16 x);
inline float to_float(float x) { return x; }
