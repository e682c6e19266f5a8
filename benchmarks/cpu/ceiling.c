// What a core can do at most: multiply-accumulates per second by independent instructions on registers or tiles, and
// bytes per second that an element-wise pass moves. No model can be faster without doing less.
//
//     gcc -O2 -march=native ceiling.c -o ceiling && ./ceiling       one thread; a line for each: name, 10^9 per second
//
// Needs AVX-512; BF16, VNNI and AMX are left out where the compiler was told of none.
#include <immintrin.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { CHAINS = 13, ROUNDS = 4000000, REPEATS = 7 };  // 13: latency 6 or less, 2 per cycle

#define KERNEL(name, type, zero, step)                                                                    \
    static void name(void) {                                                                              \
        type a0 = zero, a1 = zero, a2 = zero, a3 = zero, a4 = zero, a5 = zero, a6 = zero, a7 = zero,      \
             a8 = zero, a9 = zero, a10 = zero, a11 = zero, a12 = zero;                                    \
        __m512i x = _mm512_set1_epi32(0x3f803f80), y = x;                                                 \
        for (long n = 0; n < ROUNDS; n++) {                                                               \
            a0 = step(a0), a1 = step(a1), a2 = step(a2), a3 = step(a3), a4 = step(a4), a5 = step(a5);     \
            a6 = step(a6), a7 = step(a7), a8 = step(a8), a9 = step(a9), a10 = step(a10);                  \
            a11 = step(a11), a12 = step(a12);                                                             \
            __asm__ volatile("" : "+v"(a0), "+v"(a1), "+v"(a2), "+v"(a3), "+v"(a4), "+v"(a5), "+v"(a6),   \
                             "+v"(a7), "+v"(a8), "+v"(a9), "+v"(a10), "+v"(a11), "+v"(a12), "+v"(x));     \
        }                                                                                                 \
    }
#define FP32(a) _mm512_fmadd_ps((__m512)x, (__m512)y, a)
KERNEL(fp32, __m512, _mm512_setzero_ps(), FP32)
#ifdef __AVX512BF16__
#define BF16(a) _mm512_dpbf16_ps(a, (__m512bh)x, (__m512bh)y)
KERNEL(bf16, __m512, _mm512_setzero_ps(), BF16)
#endif
#ifdef __AVX512VNNI__
#define INT8(a) _mm512_dpbusd_epi32(a, x, y)
KERNEL(int8, __m512i, _mm512_setzero_si512(), INT8)
#endif

#ifdef __AMX_INT8__
enum { ARCH_REQ_XCOMP_PERM = 0x1023, XTILEDATA = 18 };

static int tiles(void) {  // 8 tiles of 16 rows of 64 bytes; the system is asked for them first
    if (syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA)) return 0;
    static struct { uint8_t palette, start, unused[14]; uint16_t bytes[16]; uint8_t rows[16]; } config;
    config.palette = 1;
    for (int i = 0; i < 8; i++) config.bytes[i] = 64, config.rows[i] = 16;
    _tile_loadconfig(&config);
    return 1;
}
// As in a matrix product: 4 sums, of 2 x 2 operands.
#define TILES(name, step)                                                                                 \
    static void name(void) {                                                                              \
        for (long n = 0; n < ROUNDS / 4; n++) {                                                           \
            step(0, 4, 6);                                                                                \
            step(1, 4, 7);                                                                                \
            step(2, 5, 6);                                                                                \
            step(3, 5, 7);                                                                                \
        }                                                                                                 \
    }
TILES(amx_bf16, _tile_dpbf16ps)
TILES(amx_int8, _tile_dpbusd)
#endif

// Two maps of BF16 added to a third: 3 x 1.6 MB, those of a block of 256 channels at 56 x 56.
enum { MAP = 256 * 56 * 56 / 32, PASSES = 200 };
static __m512i *map[3];

static void pass(void) {
    for (int n = 0; n < PASSES; n++)
        for (int i = 0; i < MAP; i++) map[2][i] = _mm512_add_epi16(map[0][i], map[1][i]);
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + 1e-9 * time.tv_nsec;
}

static void show(const char *name, void (*run)(void), double per_run) {
    double best = 0;
    for (int repeat = 0; repeat < REPEATS; repeat++) {
        double start = now();
        run();
        double rate = 1e-9 * per_run / (now() - start);
        if (rate > best) best = rate;
    }
    printf("%s %.0f\n", name, best);
}

int main(void) {
    const double products = (double)ROUNDS * CHAINS;
    show("fp32", fp32, products * 16);
#ifdef __AVX512BF16__
    show("bf16", bf16, products * 32);
#endif
#ifdef __AVX512VNNI__
    show("int8", int8, products * 64);
#endif
#ifdef __AMX_INT8__
    if (tiles()) {
        show("amx_bf16", amx_bf16, (double)ROUNDS * 16 * 16 * 32);
        show("amx_int8", amx_int8, (double)ROUNDS * 16 * 16 * 64);
        _tile_release();
    }
#endif
    for (int i = 0; i < 3; i++) map[i] = aligned_alloc(64, MAP * sizeof(__m512i));
    for (int i = 0; i < 3; i++)
        for (int n = 0; n < MAP; n++) map[i][n] = _mm512_set1_epi16((short)n);
    show("bytes", pass, (double)PASSES * MAP * 3 * sizeof(__m512i));
}
