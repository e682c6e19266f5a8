// What the kernels of this folder share: element types, 16-byte reads, asynchronous copies, numbered barriers.
//
// No header is included: NVRTC needs no toolkit beside it, and the host build (tests) gives its own primitives.
// `source.py` writes this file into those that include it.

#ifndef LANES
#define LANES 32  // threads that read the same unit of successive groups
#endif
#ifndef THREADS
#define THREADS 256  // of a block
#endif

struct Half {
    unsigned short bits;
};
struct Bfloat16 {
    unsigned short bits;
};
struct alignas(16) Unit {
    unsigned words[4];
};

#ifdef __CUDACC__

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(Half x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
}
__device__ inline float to_float(Bfloat16 x) { return __uint_as_float(static_cast<unsigned>(x.bits) << 16); }

__device__ inline float max_or_nan(float a, float b) {
    float y;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
    return y;
}

// Of two halves each.
__device__ inline unsigned max_or_nan(unsigned a, unsigned b, Half) {
    unsigned y;
    asm("max.NaN.f16x2 %0, %1, %2;" : "=r"(y) : "r"(a), "r"(b));
    return y;
}
__device__ inline unsigned max_or_nan(unsigned a, unsigned b, Bfloat16) {
    unsigned y;
    asm("max.NaN.bf16x2 %0, %1, %2;" : "=r"(y) : "r"(a), "r"(b));
    return y;
}

__device__ inline Unit load16(const void* shared) {
    const uint4 q = *static_cast<const uint4*>(shared);
    return {{q.x, q.y, q.z, q.w}};
}
__device__ inline float bits_to_float(unsigned bits) { return __uint_as_float(bits); }
__device__ inline unsigned bits_of(float x) { return __float_as_uint(x); }
__device__ inline void store16(void* to, const Unit& unit) {
    *static_cast<uint4*>(to) = make_uint4(unit.words[0], unit.words[1], unit.words[2], unit.words[3]);
}
// To the nearest, ties to even.
__device__ inline void from_float(float x, Half& y) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x)); }
__device__ inline void from_float(float x, Bfloat16& y) { asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x)); }

// An address in shared memory, in a register of the thread. threadIdx.y is 0, which no compiler knows: left alone, ptxas
// 13.0 puts the sum of a block's and a thread's part into the copy itself, and where there are loops around it encodes it
// wrongly: LDGSTS [R21+UR0], desc[UR1] is an illegal instruction (met on an H100).
__device__ inline unsigned shared_address(void* shared) {
    return static_cast<unsigned>(__cvta_generic_to_shared(shared)) ^ threadIdx.y;
}
// Starts to copy 16 bytes from device to shared memory. Those before a commit are a group; copies_wait<N> leaves the N
// youngest groups on their way. Visible to this thread afterwards.
__device__ inline void copy16(void* shared, const void* global) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)), "l"(global) : "memory");
}
// The same, of what nobody reads again (`last`): L2 gives it up before anything else.
__device__ inline void copy16(void* shared, const void* global, bool last) {
    if (!last) return copy16(shared, global);
    unsigned long long policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
                 "l"(global), "l"(policy)
                 : "memory");
}
__device__ inline void copies_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N>
__device__ inline void copies_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

#define DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#define MINUS_INFINITY __int_as_float(0xff800000)  // NVRTC knows no INFINITY
#define BLOCK THREADS
#define MISSING_BARRIER 0
#define PLANTED_OVERREAD 0

#endif  // the host's primitives: tests/kernels/host/cuda_shim.h

// Element i of a unit; i is a constant wherever this is called.
template <typename T>
__device__ inline float element(const Unit& unit, int i) {
    if constexpr (sizeof(T) == 4) {
        return bits_to_float(unit.words[i]);
    } else {
        T value;
        value.bits = static_cast<unsigned short>(unit.words[i / 2] >> i % 2 * 16);
        return to_float(value);
    }
}

// The maxima of a unit's words, element by element, and of `peak`: half an instruction for each element of two bytes.
template <typename T>
__device__ inline unsigned max_of_words(unsigned peak, const Unit& unit) {
    const auto larger = [](unsigned a, unsigned b) {
        if constexpr (sizeof(T) == 4)
            return bits_of(max_or_nan(bits_to_float(a), bits_to_float(b)));
        else
            return max_or_nan(a, b, T());
    };
    return larger(peak, larger(larger(unit.words[0], unit.words[1]), larger(unit.words[2], unit.words[3])));
}

// The elements of `last` before `skip`, and those of `first` from there on.
template <typename T>
__device__ inline Unit spliced(const Unit& first, const Unit& last, int skip) {
    Unit unit;
#pragma unroll
    for (int word = 0; word < 4; ++word) {
        const auto word_of = [&](int i) { return i < skip ? last.words[word] : first.words[word]; };
        if constexpr (sizeof(T) == 4)
            unit.words[word] = word_of(word);
        else
            unit.words[word] = (word_of(2 * word) & 0xffff) | (word_of(2 * word + 1) & 0xffff0000);
    }
    return unit;
}

template <typename T>
__device__ inline Unit unit_of(const float (&values)[16 / sizeof(T)]) {
    Unit unit;
#pragma unroll
    for (int word = 0; word < 4; ++word) {
        if constexpr (sizeof(T) == 4) {
            unit.words[word] = bits_of(values[word]);
        } else {
            T low, high;
            from_float(values[2 * word], low);
            from_float(values[2 * word + 1], high);
            unit.words[word] = low.bits | static_cast<unsigned>(high.bits) << 16;
        }
    }
    return unit;
}

// Every barrier has a number, so that the tests can leave out one at a time and see that it is missed.
template <int NUMBER>
__device__ inline void block_barrier() {
    if (NUMBER != MISSING_BARRIER) __syncthreads();
}

__device__ inline float sigmoid(float x) {
    const float small = expf(-fabsf(x));              // never overflows
    return (x >= 0 ? 1.0f : small) / (1.0f + small);  // NaN: small is NaN
}

__device__ inline float relu(float x) { return x < 0 ? 0.0f : x; }  // fmaxf would turn NaN into 0

__device__ inline int over(int whole, int part) { return (whole + part - 1) / part; }

// `count` floats, a multiple of 4, to shared memory, by all threads.
__device__ inline void copy_floats(float* shared, const float* global, int count) {
    for (int i = 4 * threadIdx.x; i < count; i += 4 * BLOCK) copy16(shared + i, global + i);
}
