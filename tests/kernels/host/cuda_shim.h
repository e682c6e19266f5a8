// What the kernels need of CUDA, on the host: a thread of the CPU for every thread of a block, so that
// ThreadSanitizer sees each missing barrier and AddressSanitizer each access beyond a buffer. For tests only.
//
// Asynchronous copies happen when their group is waited for and not before. Shared memory holds NaN before every block.

#pragma once

#define LANES 4
#define BLOCK static_cast<int>(blockDim.x)

#include <pthread.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
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

inline thread_local unsigned block_passed = 0;
inline thread_local Barrier* block = nullptr;
inline thread_local unsigned char* shared = nullptr;
// Groups of copies that were started and not waited for, the oldest first; the last is not committed yet.
inline thread_local std::deque<std::vector<std::pair<void*, const void*>>> copies(1);
inline int missing_barrier = 0, overread = 0;  // set before any thread starts

}  // namespace host

#define MINUS_INFINITY (-INFINITY)
#define MISSING_BARRIER host::missing_barrier
#define PLANTED_OVERREAD host::overread
#define DYNAMIC_SHARED(name) unsigned char* name = host::shared

inline void __syncthreads() { host::block->wait(host::block_passed); }

template <typename T>
T atomicAdd(T* at, T value) {
    return __atomic_fetch_add(at, value, __ATOMIC_SEQ_CST);
}

inline void copy16(void* shared, const void* global) {
    if ((reinterpret_cast<std::uintptr_t>(shared) | reinterpret_cast<std::uintptr_t>(global)) % 16) {
        std::fprintf(stderr, "copy16 of addresses that are not multiples of 16\n");
        std::abort();
    }
    host::copies.back().emplace_back(shared, global);
}
inline void copies_commit() { host::copies.emplace_back(); }
template <int N>
void copies_wait() {
    while (host::copies.size() > N + 1) {
        for (auto [to, from] : host::copies.front()) std::memcpy(to, from, 16);
        host::copies.pop_front();
    }
}

namespace host {
// What was started and is not waited for when a block ends never arrives here, and on a GPU at some time or other.
inline void end_of_block() {
    for (const auto& group : copies)
        if (!group.empty()) {
            std::fprintf(stderr, "a block ends while copies are on their way\n");
            std::abort();
        }
    copies.assign(1, {});
}
}  // namespace host

inline void copy16(void* shared, const void* global, bool) { copy16(shared, global); }

inline float bits_to_float(unsigned bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

inline unsigned bits_of(float x) {
    unsigned bits;
    std::memcpy(&bits, &x, 4);
    return bits;
}

inline float max_or_nan(float a, float b) { return a != a || a > b ? a : b; }

struct Half;
struct Bfloat16;
struct Unit;
// In elements.h.
unsigned max_or_nan(unsigned a, unsigned b, Half);
unsigned max_or_nan(unsigned a, unsigned b, Bfloat16);
Unit load16(const void* from);
void store16(void* to, const Unit& unit);
float to_float(Half x);
float to_float(Bfloat16 x);
void from_float(float x, Half& y);
void from_float(float x, Bfloat16& y);
inline float to_float(float x) { return x; }
