// Attention pool: attention (ECA, CBAM or none) and global average pooling of two feature maps, in one launch.
//
//   nvcc -std=c++17 -arch=sm_90 -cubin -Xptxas -v attention_pool.cu
//        -DELEMENT=Half -DCHANNELS_LAST=0 -DEXCHANGE=1 -DSPLIT=8 -DSAMPLES=2
//
//   ELEMENT        float, Half or Bfloat16: what the feature maps hold. All arithmetic is float32.
//   CHANNELS_LAST  0: feature maps are [N, C, h, w]; 1: [N, h, w, C]
//   EXCHANGE       how blocks that share a sample add up their parts: ALONE 0, CLUSTER 1 (sm_90 and later), GRID 2
//   SPLIT          CLUSTER: blocks of a cluster; the others take it from the problem
//   SAMPLES        samples that a block works on at once: the weights of CBAM's MLP are read once for all of them
//   THREADS        threads of a block (256 unless given)
//
// One work item is SAMPLES samples of one modality and `split` blocks, each of which owns a slice of the channels. The
// modalities take turns along the grid, so that blocks that wait for memory (ECA) run beside blocks that compute.
// Row n of `out` is [first modality's channels | second modality's channels]: nothing is concatenated afterwards.
//
// ECA    mean(x g_c) = g_c mean(x): one pass over the feature map, nothing is held and no block waits for another. The
//        means that the 1-D convolution needs from beyond a slice are computed again (the halo).
// CBAM   three passes over a slice. A: mean and maximum of each channel, then the MLP; its first layer is a sum over
//        channels, so each block adds its part and the parts are exchanged; the second layer is linear and applied once
//        to relu(mean path) + relu(max path). B: sum and maximum over channels of the gated map, exchanged; the k x k
//        convolution is repeated by every block. C: out_c = g_c mean(x s), s the spatial gate.
//
// What a strategy is made of:
//   held      a slice fits in shared memory: device memory is read once, passes B and C read shared memory
//   re-read   it does not: tiles are loaded again, from L2 if the slice still lies there; passes take turns in
//             direction, so that the last tile of a pass is the first of the next
//   ALONE     one block per sample: no exchange, least parallel
//   CLUSTER   parts are exchanged through distributed shared memory; up to 8 blocks, sm_90 and later
//   GRID      parts are exchanged through device memory, with a counter for each work item. A block takes its work item
//             from a ticket counter when it starts: whatever the order in which blocks start, only the newest work item
//             can miss blocks, so that waiting ends wherever SPLIT blocks can be resident at once (of two launches at
//             once, 2 x SPLIT: `plan.py` sees to that)
//
// A NaN in a feature map gives NaN wherever the formula does: max keeps NaN, and ReLU is written as "below 0 is 0".
// Results do not depend on timing: every sum has a fixed order, and there are no atomics on floats.
// No header is included: NVRTC needs no toolkit beside it, and the host build (tests) gives its own primitives.

#define ALONE 0
#define CLUSTER 1
#define GRID 2

#define KIND_NONE 0
#define KIND_ECA 1
#define KIND_CBAM 2

struct Half {
    unsigned short bits;
};
struct Bfloat16 {
    unsigned short bits;
};

// Mirrored by MODALITY and PROBLEM in attention_pool.py. Offsets `at_*` are bytes into dynamic shared memory.
struct Modality {
    const void* x;          // feature map
    const float* fc1;       // [C, hidden4 * 4]: transposed and padded with zeros
    const float* fc1_bias;  // [hidden]
    const float* fc2;       // [hidden, channels4 * 4]: transposed and padded with zeros
    const float* fc2_bias;  // [C]
    const float* kernel;    // ECA: [size]; CBAM: [2, size, size] over (mean, maximum)
    int kind, channels, height, width, hidden, size;
    int slice;   // channels that a block owns, a multiple of 8
    int halo;    // ECA: channels on each side whose means are needed as well, a multiple of 8
    int tile;    // channels that are loaded at once, a multiple of 8
    int column;  // where this modality begins in a row of `out`
    int at_stats, at_hidden, at_scratch, at_slot, at_maps, at_gate;
};
struct Problem {
    Modality modality[2];
    float* out;                 // [cases, columns]
    float* slots;               // GRID: [work items, SPLIT, slot_floats]
    unsigned* counters;         // GRID: ticket, blocks done, then one for each work item; all 0 between launches
    unsigned long long* trace;  // null, or 4 counts: elements loaded of each modality, cluster and grid barriers passed
    int cases, columns, split, slot_floats;
};

// ---------------------------------------------------------------- primitives

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

// Starts to copy 16 bytes from device to shared memory; visible to this thread after copies_wait().
__device__ inline void copy16(void* shared, const void* global) {
    const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(global) : "memory");
}
__device__ inline void copies_wait() { asm volatile("cp.async.wait_all;" ::: "memory"); }

__device__ inline unsigned load_acquire(const unsigned* at) {
    unsigned value;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(at) : "memory");
    return value;
}

__device__ inline void cluster_barrier() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.release;\n\tbarrier.cluster.wait.acquire;" ::: "memory");
#endif
}
// The float at `mine` in the shared memory of block `rank` of this cluster.
__device__ inline float load_peer(const float* mine, int rank) {
    float value = 0;
#if __CUDA_ARCH__ >= 900
    const unsigned local = static_cast<unsigned>(__cvta_generic_to_shared(mine));
    unsigned remote;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(local), "r"(rank));
    asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(value) : "r"(remote) : "memory");
#endif
    return value;
}

#define DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#define MINUS_INFINITY __int_as_float(0xff800000)  // NVRTC knows no INFINITY
#define MISSING_BARRIER 0
#define PLANTED_OVERREAD 0

#endif  // the host's primitives: tests/kernels/host/cuda_shim.h

// Every barrier has a number, so that the tests can leave out one at a time and see that it is missed.
template <int NUMBER>
__device__ inline void block_barrier() {
    if (NUMBER != MISSING_BARRIER) __syncthreads();
}

__device__ inline float sigmoid(float x) {
    const float small = expf(-fabsf(x));  // never overflows
    return (x >= 0 ? 1.0f : small) / (1.0f + small);  // NaN: small is NaN
}

__device__ inline float relu(float x) { return x < 0 ? 0.0f : x; }  // fmaxf would turn NaN into 0

template <int J>
struct alignas(J % 4 == 0 ? 16 : J % 2 == 0 ? 8 : 4) Vector {
    float value[J];
};

// ---------------------------------------------------------------- sums inside a block

// finish(row, sum, maximum) for each of `rows` rows of value(sample, row, r, x[...]), r in [0, length).
// ALONG: element r of row is x[row * length + r]. Otherwise a sample is a [length, rows_per_sample] matrix and its rows
// are the columns of that: x[sample * rows_per_sample * length + r * rows_per_sample + row % rows_per_sample].
// Where there are fewer rows than threads, several threads share a row. In both cases the threads of a warp read
// different banks: along a row, each starts at another place. Row r is finished by thread r modulo the threads, and the
// caller has a barrier before `scratch` is used again.
template <bool ALONG, typename T, typename Value, typename Finish>
__device__ inline void reduce_rows(const T* x, int rows, int rows_per_sample, int length, float* scratch, Value value,
                                   Finish finish) {
    const int threads = blockDim.x, t = threadIdx.x;
    const int parts = rows >= threads ? 1 : min(threads / rows, length);
    const int step = ALONG ? 1 : rows_per_sample;
    const int part = parts == 1 ? 0 : ALONG ? t % parts : t / rows;
    float sum = 0, peak = 0;
    for (int row = parts == 1 ? t : ALONG ? t / parts : t % rows; row < rows && part < parts; row += threads) {
        const int sample = row / rows_per_sample;
        const T* from = ALONG ? x + row * length : x + sample * rows_per_sample * (length - 1) + row;
        const int turn = ALONG && length % 2 == 0 ? row * parts % length : 0;
        sum = 0;
        peak = MINUS_INFINITY;
        for (int i = part; i < length; i += parts) {
            const int r = i + turn < length ? i + turn : i + turn - length;
            const float v = value(sample, row, r, to_float(from[r * step]));
            sum += v;
            peak = max_or_nan(peak, v);
        }
        if (parts == 1) finish(row, sum, peak);
    }
    if (parts == 1) return;
    scratch[t] = sum;
    scratch[threads + t] = peak;
    block_barrier<1>();
    if (t < rows) {
        sum = 0;
        peak = MINUS_INFINITY;
        for (int k = 0; k < parts; ++k) {
            const int at = ALONG ? t * parts + k : k * rows + t;
            sum += scratch[at];
            peak = max_or_nan(peak, scratch[threads + at]);
        }
        finish(t, sum, peak);
    }
}

// out[column][j] = sum over k < length of weights[k][column] * in[k][j], for 4 * quads columns and J right-hand sides.
template <int J>
__device__ inline void multiply(const float4* weights, int stride4, int length, int quads, const Vector<J>* in,
                                float* out) {
    const int threads = blockDim.x, t = threadIdx.x;
    const int width = max(1, min(quads, threads));
    const int parts = min(threads / width, 16), part = t / width;
    for (int first = 0; first < quads; first += width) {
        const int quad = first + t % width;
        const bool active = part < parts && quad < quads;
        float sum[4][J] = {};
        if (active) {
#pragma unroll 4
            for (int k = part; k < length; k += parts) {
                const float4 w = weights[static_cast<long long>(k) * stride4 + quad];
                const Vector<J> x = in[k];
#pragma unroll
                for (int j = 0; j < J; ++j) {
                    sum[0][j] += w.x * x.value[j];
                    sum[1][j] += w.y * x.value[j];
                    sum[2][j] += w.z * x.value[j];
                    sum[3][j] += w.w * x.value[j];
                }
            }
        }
        for (int turn = 0; turn < parts; ++turn) {  // one part after the other: a fixed order, and no scratch
            if (active && part == turn) {
                float* to = out + quad * 4 * J;
#pragma unroll
                for (int i = 0; i < 4; ++i)
#pragma unroll
                    for (int j = 0; j < J; ++j) to[i * J + j] = turn == 0 ? sum[i][j] : to[i * J + j] + sum[i][j];
            }
            block_barrier<2>();
        }
    }
}

// ---------------------------------------------------------------- one block

template <typename T, bool LAST, int HOW, int B>
struct Block {
    const Problem& p;
    const Modality& m;
    unsigned char* shared;
    int which, item, rank;  // modality, work item, which of the blocks of that work item
    int first, count;       // samples: the first, and how many of B exist
    int begin, own;         // channels: the first of the slice, and how many
    int positions;          // h * w
    int loaded = -1;        // the first channel of the tile in shared memory
    int barriers = 0;       // group barriers passed

    __device__ T* tile() { return reinterpret_cast<T*>(shared); }
    __device__ float* at(int offset) { return reinterpret_cast<float*>(shared + offset); }

    // Channels [channel, channel + n) of the samples into shared memory: [sample, channel, position], or with channels
    // last [sample, position, channel].
    __device__ void load(int channel, int n) {
        if (channel == loaded) return;
        if (loaded >= 0) block_barrier<3>();
        loaded = channel;
        const int runs = LAST ? count * positions : count, length = LAST ? n : n * positions;
        const long long stride = LAST ? m.channels : static_cast<long long>(m.channels) * positions;
        const T* from = static_cast<const T*>(m.x) + static_cast<long long>(first) * m.channels * positions +
                        (LAST ? channel : static_cast<long long>(channel) * positions);
        T* to = tile();
        constexpr int CHUNK = 16 / sizeof(T);
        if (length % CHUNK == 0 && stride % CHUNK == 0 && reinterpret_cast<unsigned long long>(from) % 16 == 0) {
            const int chunks = length / CHUNK;
            for (int i = threadIdx.x; i < runs * chunks; i += blockDim.x) {
                const int run = i / chunks, offset = (i - run * chunks) * CHUNK;
                copy16(to + run * length + offset, from + run * stride + offset);
            }
            copies_wait();
        } else {
            for (int i = threadIdx.x; i < runs * length + PLANTED_OVERREAD; i += blockDim.x) {
                const int run = i / length;
                to[i] = from[run * stride + (i - run * length)];
            }
        }
        if (p.trace && threadIdx.x == 0) atomicAdd(p.trace + which, static_cast<unsigned long long>(runs) * length);
        block_barrier<4>();
    }

    // value and finish as in reduce_rows; rows are channels of the tile (pass A and C) or positions (pass B).
    template <typename Value, typename Finish>
    __device__ void over_positions(int n, Value value, Finish finish) {
        reduce_rows<!LAST>(tile(), count * n, n, positions, at(m.at_scratch), value, finish);
    }
    template <typename Value, typename Finish>
    __device__ void over_channels(int n, Value value, Finish finish) {
        reduce_rows<LAST>(tile(), count * positions, positions, n, at(m.at_scratch), value, finish);
    }

    // Mean and maximum of channels [from, to): stats[channel - from][sample, B + sample].
    __device__ void statistics(int from, int to) {
        float* stats = at(m.at_stats);
        for (int channel = from; channel < to; channel += m.tile) {
            const int n = min(m.tile, to - channel);
            load(channel, n);
            over_positions(
                n, [](int, int, int, float x) { return x; },
                [&](int row, float sum, float peak) {
                    const int sample = row / n, c = channel - from + row - sample * n;
                    stats[c * 2 * B + sample] = sum / positions;
                    stats[c * 2 * B + B + sample] = peak;
                });
        }
        block_barrier<5>();
    }

    __device__ void eca_or_none() {
        const int from = max(0, begin - m.halo), to = min(m.channels, begin + own + m.halo);
        statistics(from, to);
        const float* stats = at(m.at_stats);
        const int reach = m.size / 2;
        for (int i = threadIdx.x; i < own * count; i += blockDim.x) {
            const int sample = i / own, c = begin + i - sample * own;
            float logit = 0;
            for (int j = 0; j < m.size; ++j) {
                const int neighbour = c + j - reach;
                if (neighbour >= 0 && neighbour < m.channels)
                    logit += m.kernel[j] * stats[(neighbour - from) * 2 * B + sample];
            }
            const float mean = stats[(c - from) * 2 * B + sample];
            write(sample, c, m.kind == KIND_ECA ? sigmoid(logit) * mean : mean);
        }
    }

    __device__ void write(int sample, int channel, float value) {
        p.out[static_cast<long long>(first + sample) * p.columns + m.column + channel] = value;
    }

    // ------------------------------------------------------------ between the blocks of a work item

    // Floats [from, to) of this block's slot become visible to the others, and theirs to this block.
    __device__ void exchange(int from, int to) {
        ++barriers;
        if (HOW == CLUSTER) {
            if (MISSING_BARRIER != 6) cluster_barrier();
        } else if (HOW == GRID) {
            const float* slot = at(m.at_slot);
            float* global = p.slots + (static_cast<long long>(item) * p.split + rank) * p.slot_floats;
            for (int i = from + threadIdx.x; i < to; i += blockDim.x) global[i] = slot[i];
            __threadfence();
            block_barrier<7>();
            if (threadIdx.x == 0 && MISSING_BARRIER != 8) {
                unsigned* arrived = p.counters + 2 + item;
                atomicAdd(arrived, 1u);
                while (load_acquire(arrived) < static_cast<unsigned>(barriers * p.split)) {
                }
                __threadfence();
            }
            block_barrier<9>();
        }
        if (p.trace && HOW != ALONE && threadIdx.x == 0) atomicAdd(p.trace + (HOW == CLUSTER ? 2 : 3), 1ull);
    }
    __device__ float from_slot(int block, int i) {
        if (HOW == CLUSTER) return load_peer(at(m.at_slot) + i, block);
        if (HOW == GRID) return p.slots[(static_cast<long long>(item) * p.split + block) * p.slot_floats + i];
        return at(m.at_slot)[i];
    }

    // ------------------------------------------------------------ CBAM

    // Pass A: the gate of the own channels, [sample * slice + channel]. It takes the place of the statistics.
    __device__ float* channel_gate() {
        statistics(begin, begin + own);
        const int hidden4 = (m.hidden + 3) / 4, channels4 = (m.channels + 3) / 4;
        multiply<2 * B>(reinterpret_cast<const float4*>(m.fc1) + static_cast<long long>(begin) * hidden4, hidden4, own,
                        hidden4, reinterpret_cast<const Vector<2 * B>*>(at(m.at_stats)), at(m.at_slot));
        exchange(0, hidden4 * 4 * 2 * B);
        float* hidden = at(m.at_hidden);
        for (int i = threadIdx.x; i < m.hidden * B; i += blockDim.x) {
            const int h = i / B, sample = i % B;
            float mean = 0, peak = 0;
            for (int block = 0; block < p.split; ++block) {
                mean += from_slot(block, h * 2 * B + sample);
                peak += from_slot(block, h * 2 * B + B + sample);
            }
            hidden[i] = relu(mean + m.fc1_bias[h]) + relu(peak + m.fc1_bias[h]);
        }
        block_barrier<10>();
        float *logits = at(m.at_stats), *gate = logits + m.slice * B;
        multiply<B>(reinterpret_cast<const float4*>(m.fc2) + begin / 4, channels4, m.hidden, (own + 3) / 4,
                    reinterpret_cast<const Vector<B>*>(hidden), logits);
        for (int i = threadIdx.x; i < own * B; i += blockDim.x) {
            const int c = i / B, sample = i % B;
            gate[sample * m.slice + c] = sigmoid(logits[i] + 2 * m.fc2_bias[begin + c]);
        }
        block_barrier<11>();
        return gate;
    }

    // Pass B: the spatial gate over the number of positions, [sample, position].
    __device__ const float* spatial_gate(const float* gate) {
        const int per_map = count * positions, in_slot = (m.hidden + 3) / 4 * 4 * 2 * B;
        float* sums = at(m.at_slot) + in_slot;
        float* peaks = sums + per_map;
        for (int i = threadIdx.x; i < per_map; i += blockDim.x) {
            sums[i] = 0;
            peaks[i] = MINUS_INFINITY;
        }
        for (int tiles = (own + m.tile - 1) / m.tile, k = tiles - 1; k >= 0; --k) {
            const int offset = k * m.tile, n = min(m.tile, own - offset);
            load(begin + offset, n);
            over_channels(
                n, [&](int sample, int, int r, float x) { return x * gate[sample * m.slice + offset + r]; },
                [&](int row, float sum, float peak) {
                    sums[row] += sum;
                    peaks[row] = max_or_nan(peaks[row], peak);
                });
        }
        block_barrier<12>();
        exchange(in_slot, in_slot + 2 * per_map);
        float* maps = at(m.at_maps);
        for (int i = threadIdx.x; i < per_map; i += blockDim.x) {
            float sum = 0, peak = MINUS_INFINITY;
            for (int block = 0; block < p.split; ++block) {
                sum += from_slot(block, in_slot + i);
                peak = max_or_nan(peak, from_slot(block, in_slot + per_map + i));
            }
            maps[i] = sum / m.channels;
            maps[per_map + i] = peak;
        }
        block_barrier<13>();
        float* spatial = at(m.at_gate);
        for (int i = threadIdx.x; i < per_map; i += blockDim.x) {
            const int sample = i / positions, place = i - sample * positions, y = place / m.width;
            spatial[i] = sigmoid(convolve(maps, maps + per_map, sample, y, place - y * m.width)) / positions;
        }
        block_barrier<14>();
        return spatial;
    }

    __device__ float convolve(const float* mean, const float* peak, int sample, int y, int x) {
        const int reach = m.size / 2;
        float logit = 0;
        for (int dy = max(0, reach - y); dy < min(m.size, m.height + reach - y); ++dy)
            for (int dx = max(0, reach - x); dx < min(m.size, m.width + reach - x); ++dx) {
                const int from = (sample * m.height + y + dy - reach) * m.width + x + dx - reach, k = dy * m.size + dx;
                logit += m.kernel[k] * mean[from] + m.kernel[m.size * m.size + k] * peak[from];
            }
        return logit;
    }

    __device__ void cbam() {
        const float* gate = channel_gate();
        const float* spatial = spatial_gate(gate);
        for (int offset = 0; offset < own; offset += m.tile) {  // pass C
            const int n = min(m.tile, own - offset);
            load(begin + offset, n);
            over_positions(
                n, [&](int sample, int, int r, float x) { return x * spatial[sample * positions + r]; },
                [&](int row, float sum, float) {
                    const int sample = row / n, c = offset + row - sample * n;
                    write(sample, begin + c, gate[sample * m.slice + c] * sum);
                });
        }
        // A block whose shared memory others still read must not end. GRID: the slots outlive the block.
        if (HOW == CLUSTER && MISSING_BARRIER != 15) cluster_barrier();
    }
};

// The number of this block: in GRID the order in which blocks started, see above.
template <int HOW>
__device__ inline int block_number(const Problem& p, unsigned char* shared) {
    if (HOW != GRID) return blockIdx.x;
    unsigned* ticket = reinterpret_cast<unsigned*>(shared);
    if (threadIdx.x == 0) *ticket = atomicAdd(p.counters, 1u);
    block_barrier<16>();
    const int number = static_cast<int>(*ticket);
    block_barrier<17>();
    return number;
}

template <typename T, bool LAST, int HOW, int B>
__device__ inline void attention_pool_block(const Problem& p) {
    DYNAMIC_SHARED(shared);
    const int number = block_number<HOW>(p, shared), item = number / p.split, rank = number - item * p.split;
    const Modality& m = p.modality[item % 2];
    const int first = item / 2 * B, begin = min(rank * m.slice, m.channels);
    Block<T, LAST, HOW, B> block{p, m, shared, item % 2, item, rank, first, min(B, p.cases - first), begin,
                                 min(m.slice, m.channels - begin), m.height * m.width};
    if (m.kind == KIND_CBAM)
        block.cbam();
    else
        block.eca_or_none();
    if (HOW == GRID && threadIdx.x == 0) {
        if (atomicAdd(p.counters + 1, 1u) + 1 == gridDim.x)  // the last block leaves the counters as it found them
            for (unsigned i = 0; i < 2 + gridDim.x / p.split; ++i) p.counters[i] = 0;
    }
}

// Blocks that should fit on a multiprocessor, as far as registers go: left alone, the compiler spills to fit more.
#define RESIDENT(samples) ((samples) < 8 ? 2 : 1)

#ifdef ELEMENT

#ifndef THREADS
#define THREADS 256
#endif
#if EXCHANGE == CLUSTER
#define CLUSTER_OF __cluster_dims__(SPLIT, 1, 1)
#else
#define CLUSTER_OF
#endif

extern "C" __global__ void CLUSTER_OF __launch_bounds__(THREADS, RESIDENT(SAMPLES))
    attention_pool(const __grid_constant__ Problem p) {
    attention_pool_block<ELEMENT, CHANNELS_LAST, EXCHANGE, SAMPLES>(p);
}

#endif
