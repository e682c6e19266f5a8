// What this processor's vector units can do at most: multiply-accumulates per second of FP32, BF16 and INT8, by
// independent instructions on registers. No model can be faster without doing less arithmetic.
//
//     gcc -O2 -march=native -pthread benchmarks/ceiling.c -o /tmp/ceiling && /tmp/ceiling
//
// Needs AVX-512 with BF16 and VNNI.
#include <immintrin.h>
#include <pthread.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

enum { CHAINS = 13, ROUNDS = 50000000, REPEATS = 5, MAX_THREADS = 256 };  // 13: latency 6 or less, 2 per cycle

static pthread_barrier_t barrier;

#define KERNEL(name, type, zero, step)                                                                    \
    static void *name(void *unused) {                                                                     \
        type a0 = zero, a1 = zero, a2 = zero, a3 = zero, a4 = zero, a5 = zero, a6 = zero, a7 = zero,      \
             a8 = zero, a9 = zero, a10 = zero, a11 = zero, a12 = zero;                                    \
        __m512i x = _mm512_set1_epi32(0x3f803f80), y = x;                                                 \
        pthread_barrier_wait(&barrier);                                                                   \
        for (long n = 0; n < ROUNDS; n++) {                                                               \
            a0 = step(a0), a1 = step(a1), a2 = step(a2), a3 = step(a3), a4 = step(a4), a5 = step(a5);     \
            a6 = step(a6), a7 = step(a7), a8 = step(a8), a9 = step(a9), a10 = step(a10);                  \
            a11 = step(a11), a12 = step(a12);                                                             \
            asm volatile("" : "+v"(a0), "+v"(a1), "+v"(a2), "+v"(a3), "+v"(a4), "+v"(a5), "+v"(a6),       \
                         "+v"(a7), "+v"(a8), "+v"(a9), "+v"(a10), "+v"(a11), "+v"(a12), "+v"(x));         \
        }                                                                                                 \
        pthread_barrier_wait(&barrier);                                                                   \
        return unused;                                                                                    \
    }
#define FP32(a) _mm512_fmadd_ps((__m512)x, (__m512)y, a)
#define BF16(a) _mm512_dpbf16_ps(a, (__m512bh)x, (__m512bh)y)
#define INT8(a) _mm512_dpbusd_epi32(a, x, y)
KERNEL(fp32, __m512, _mm512_setzero_ps(), FP32)
KERNEL(bf16, __m512, _mm512_setzero_ps(), BF16)
KERNEL(int8, __m512i, _mm512_setzero_si512(), INT8)

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + 1e-9 * time.tv_nsec;
}

int main(void) {
    static const struct { const char *name; void *(*run)(void *); int products; } kinds[] = {
        {"fp32", fp32, 16}, {"bf16", bf16, 32}, {"int8", int8, 64}};
    int cores = sysconf(_SC_NPROCESSORS_ONLN);
    if (cores > MAX_THREADS) cores = MAX_THREADS;
    for (int threads = 1; threads <= cores; threads = threads < cores && 2 * threads > cores ? cores : 2 * threads)
        for (int kind = 0; kind < 3; kind++) {
            double best = 0, worst = 1e30;
            for (int repeat = 0; repeat < REPEATS; repeat++) {
                pthread_t started[MAX_THREADS];
                pthread_barrier_init(&barrier, 0, threads + 1);
                for (int i = 0; i < threads; i++) pthread_create(&started[i], 0, kinds[kind].run, 0);
                pthread_barrier_wait(&barrier);
                double start = now();
                pthread_barrier_wait(&barrier);
                double rate = 1e-9 * ROUNDS * CHAINS * kinds[kind].products * threads / (now() - start);
                for (int i = 0; i < threads; i++) pthread_join(started[i], 0);
                pthread_barrier_destroy(&barrier);
                if (rate > best) best = rate;
                if (rate < worst) worst = rate;
            }
            printf("%s, %d threads: %.0f to %.0f GMAC/s\n", kinds[kind].name, threads, worst, best);
        }
}
