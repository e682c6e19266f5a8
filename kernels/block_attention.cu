// In-block attention of an encoder, channels last: y = relu(residual + x * channel gate * spatial gate).
//
//   nvcc -std=c++17 -arch=sm_90 -cubin -Xptxas -v -DELEMENT=Half block_attention.cu
//
//   ELEMENT  float, Half or Bfloat16: what the maps hold. All arithmetic is float32.
//   KNOWN    if given, numbers of `Block` as constants: see `known`
//
// x is what the block's last convolution writes, 1 x 1 and without an activation. The mean of x over positions follows
// from the mean of what that convolution reads, `inner`, a quarter as large: mean(W i + b) = W mean(i) + b, which the
// exporter has multiplied into the first weights of the attention. So the mean is one of `inner`, and only CBAM's
// maximum is one of x.
//
// Up to five launches; each element of a map is read once by each that needs it:
//
//   statistics  sums of `inner` over a part of the positions; CBAM: maxima of x
//   hidden      CBAM: relu(W1 means + b1) + relu(V1 maxima + c1)
//   gate        sigmoid(W2 hidden + b2); composed ECA: sigmoid(W means + b), where W is the convolution over channels
//               times the block's last convolution, which is a full matrix; ECA: of the convolution over x's own means,
//               which is less work where there are many channels
//   spatial     CBAM: mean and maximum over channels of x * gate, at each position
//   apply       CBAM: the k x k convolution of these and its sigmoid; both: y
//
// Cases go from last to first where the launch before went from first to last: what is in L2 is read first.
//
// A NaN in a map gives NaN wherever the formula does. Every sum has a fixed order, and there are no atomics.

#include "primitives.cuh"

#define BLOCK_ECA 1
#define BLOCK_COMPOSED 2
#define BLOCK_CBAM 3

// Mirrored by BLOCK in block_attention.py.
struct Block {
    const void *inner, *x, *residual;  // [cases, positions, inner_channels], twice [cases, positions, channels]; ECA's
                                       // inner is x
    void* y;                           // [cases, positions, channels]
    const float* inner_weight;         // [inner_channels, hidden], composed [inner_channels, channels]
    const float* inner_bias;           // [hidden], composed [channels]
    const float* peak_weight;          // CBAM: [channels, hidden]
    const float* peak_bias;            // CBAM: [hidden]
    const float* gate_weight;          // CBAM: [hidden, channels]
    const float* gate_bias;            // CBAM: [channels]
    const float* kernel;               // CBAM: [2, size, size] over (mean, maximum); ECA: [size]
    float* sums;                       // [cases, splits, inner_channels]
    float* peaks;                      // CBAM: [cases, splits, channels]
    float* hidden_units;               // CBAM: [cases, hidden]
    float* gate;                       // [cases, channels]
    float* maps;                       // CBAM: [cases, 2, positions]
    int kind, channels, inner_channels, hidden, height, width, size;
    int cases, splits;                  // parts of the positions in `statistics`
    int first;                          // its blocks that work on `inner`
    int samples;                        // cases of a block of `hidden` and `gate`
    int hidden_columns, gate_columns;   // columns of a block
    int spatial_chunk, apply_chunk;     // positions of a block
};

constexpr int SAMPLES = 4;  // the most that `samples` may be
constexpr int ROWS = 4;     // positions that a block of `statistics` reads at once, at the least

// ---------------------------------------------------------------- statistics

// Sum, or maximum, of channels of from [cases, positions, channels] over a part of the positions of a case, into
// to [cases, splits, channels]. A thread has one unit of 16 bytes of every `rows`-th position.
template <typename T, bool PEAK>
__device__ inline void reduce_positions(const void* from, float* to, int channels, int positions, const Block& b,
                                        int block, float* scratch) {
    constexpr int E = 16 / sizeof(T);
    const int units = channels / E, wide = min(units, BLOCK / ROWS), tiles = over(units, wide), rows = BLOCK / wide;
    const int tile = block % tiles, part = block / tiles % b.splits, n = b.cases - 1 - block / tiles / b.splits;
    const int each = over(positions, b.splits), begin = part * each, end = min(begin + each, positions);
    const int column = threadIdx.x % wide, row = threadIdx.x / wide, unit = tile * wide + column;
    float value[E];
#pragma unroll
    for (int i = 0; i < E; ++i) value[i] = PEAK ? MINUS_INFINITY : 0;
    if (row < rows && unit < units) {
        const Unit* at = static_cast<const Unit*>(from) + static_cast<long long>(n) * positions * units + unit;
#pragma unroll 4
        for (int p = begin + row; p < end; p += rows) {
            const Unit one = load16(at + static_cast<long long>(p) * units);
#pragma unroll
            for (int i = 0; i < E; ++i) {
                const float x = element<T>(one, i);
                value[i] = PEAK ? max_or_nan(value[i], x) : value[i] + x;
            }
        }
    }
    if (row < rows)
#pragma unroll
        for (int i = 0; i < E; ++i) scratch[(i * rows + row) * wide + column] = value[i];
    block_barrier<1>();
    float* into = to + (static_cast<long long>(n) * b.splits + part) * channels + tile * wide * E;
    for (int i = threadIdx.x; i < min(wide, units - tile * wide) * E; i += BLOCK) {
        const float* here = scratch + i % E * rows * wide + i / E;
        float sum = here[0];
        for (int r = 1; r < rows; ++r) sum = PEAK ? max_or_nan(sum, here[r * wide]) : sum + here[r * wide];
        into[i] = sum;
    }
}

template <typename T>
__device__ inline void statistics(const Block& b, int block, float* scratch) {
    const int positions = b.height * b.width;
    if (block < b.first)
        reduce_positions<T, false>(b.inner, b.sums, b.inner_channels, positions, b, block, scratch);
    else
        reduce_positions<T, true>(b.x, b.peaks, b.channels, positions, b, block - b.first, scratch);
}

// ---------------------------------------------------------------- small matrix products

// to [b.samples, count] in shared memory: parts [case, splits, length] put together, from channel `start` on, for cases
// first, first + 1, ...; 0 where there is no such channel.
template <bool PEAK>
__device__ inline void join(const Block& b, const float* parts, float* to, int first, int length, int start, int count,
                            float factor) {
    constexpr int AHEAD = 8;  // elements of a thread whose loads are on their way at once
    for (int begin = threadIdx.x; begin < b.samples * count; begin += AHEAD * BLOCK) {
        const float* from[AHEAD];
        float value[AHEAD];
#pragma unroll
        for (int q = 0; q < AHEAD; ++q) {
            const int i = begin + q * BLOCK, n = first + i / count, k = start + i % count;
            const bool there = i < b.samples * count && n < b.cases && k >= 0 && k < length;
            from[q] = there ? parts + static_cast<long long>(n) * b.splits * length + k : nullptr;
            value[q] = PEAK && there ? MINUS_INFINITY : 0;
        }
        for (int part = 0; part < b.splits; ++part)
#pragma unroll
            for (int q = 0; q < AHEAD; ++q)
                if (from[q]) {
                    const float one = from[q][static_cast<long long>(part) * length];
                    value[q] = PEAK ? max_or_nan(value[q], one) : value[q] + one;
                }
#pragma unroll
        for (int q = 0; q < AHEAD; ++q)
            if (begin + q * BLOCK < b.samples * count) to[begin + q * BLOCK] = value[q] * factor;
    }
}

// A thread's share of the sums over k of weight[k, column] * in[sample, k]; `columns` threads side by side.
__device__ inline void multiply(const Block& b, const float* weight, int outputs, int column, int columns,
                                const float* in, int length, float* scratch) {
    const int share = threadIdx.x / columns, shares = BLOCK / columns;
    float sum[SAMPLES] = {};
    if (share < shares && column < outputs) {
#pragma unroll 16
        for (int k = share; k < length; k += shares) {
            const float w = weight[static_cast<long long>(k) * outputs + column];
#pragma unroll
            for (int s = 0; s < SAMPLES; ++s)
                if (s < b.samples) sum[s] += w * in[s * length + k];
        }
    }
    if (share < shares)
#pragma unroll
        for (int s = 0; s < SAMPLES; ++s) scratch[(s * shares + share) * columns + threadIdx.x % columns] = sum[s];
}

// The sum of the shares, in their order.
__device__ inline float joined(const float* scratch, int sample, int shares, int columns, int column) {
    float sum = 0;
    for (int share = 0; share < shares; ++share) sum += scratch[(sample * shares + share) * columns + column];
    return sum;
}

__device__ inline void hidden(const Block& b, int block, float* shared) {
    const int columns = b.hidden_columns, tiles = over(b.hidden, columns), shares = BLOCK / columns;
    const int first = block / tiles * b.samples, start = block % tiles * columns, column = start + threadIdx.x % columns;
    float* means = shared;
    float* peaks = means + b.samples * b.inner_channels;
    float* scratch = peaks + b.samples * b.channels;  // [2, SAMPLES, BLOCK]
    join<false>(b, b.sums, means, first, b.inner_channels, 0, b.inner_channels, 1.0f / (b.height * b.width));
    join<true>(b, b.peaks, peaks, first, b.channels, 0, b.channels, 1);
    block_barrier<2>();
    multiply(b, b.inner_weight, b.hidden, column, columns, means, b.inner_channels, scratch);
    multiply(b, b.peak_weight, b.hidden, column, columns, peaks, b.channels, scratch + SAMPLES * BLOCK);
    block_barrier<3>();
    for (int i = threadIdx.x; i < b.samples * columns; i += BLOCK) {
        const int s = i / columns, n = first + s, c = i % columns, h = start + c;
        if (n >= b.cases || h >= b.hidden) continue;
        const float mean = joined(scratch, s, shares, columns, c) + b.inner_bias[h];
        const float peak = joined(scratch + SAMPLES * BLOCK, s, shares, columns, c) + b.peak_bias[h];
        b.hidden_units[static_cast<long long>(n) * b.hidden + h] = relu(mean) + relu(peak);
    }
}

__device__ inline void gate(const Block& b, int block, float* shared) {
    const bool cbam = b.kind == BLOCK_CBAM, eca = b.kind == BLOCK_ECA;
    const int columns = b.gate_columns, tiles = over(b.channels, columns), shares = BLOCK / columns;
    const int first = block / tiles * b.samples, start = block % tiles * columns, column = start + threadIdx.x % columns;
    const int length = cbam ? b.hidden : eca ? columns + 2 * (b.size / 2) : b.inner_channels;
    float* scratch = shared + b.samples * length;  // [SAMPLES, BLOCK]
    if (cbam) {
        const int here = min(b.samples, b.cases - first) * length;
        const float* from = b.hidden_units + static_cast<long long>(first) * length;
        for (int i = threadIdx.x; i < b.samples * length; i += BLOCK) shared[i] = i < here ? from[i] : 0;
    } else {
        const int from = eca ? start - b.size / 2 : 0;
        join<false>(b, b.sums, shared, first, b.inner_channels, from, length, 1.0f / (b.height * b.width));
    }
    block_barrier<4>();
    if (!eca) multiply(b, cbam ? b.gate_weight : b.inner_weight, b.channels, column, columns, shared, length, scratch);
    block_barrier<5>();
    for (int i = threadIdx.x; i < b.samples * columns; i += BLOCK) {
        const int s = i / columns, n = first + s, c = start + i % columns;
        if (n >= b.cases || c >= b.channels) continue;
        float sum = 0;
        if (eca)
            for (int j = 0; j < b.size; ++j) sum += b.kernel[j] * shared[s * length + i % columns + j];
        else
            sum = joined(scratch, s, shares, columns, i % columns) + (cbam ? b.gate_bias : b.inner_bias)[c];
        b.gate[static_cast<long long>(n) * b.channels + c] = sigmoid(sum);
    }
}

// ---------------------------------------------------------------- over channels

template <typename T>
__device__ inline void gates_of(const float* gates, int unit, float (&g)[16 / sizeof(T)]) {
#pragma unroll
    for (int i = 0; i < static_cast<int>(16 / sizeof(T)); i += 4) {
        const float4 four = *reinterpret_cast<const float4*>(gates + unit * (16 / sizeof(T)) + i);
        g[i] = four.x, g[i + 1] = four.y, g[i + 2] = four.z, g[i + 3] = four.w;
    }
}

// LANES threads side by side have a position's units, EACH positions at a time.
template <typename T, int EACH>
__device__ inline void spatial(const Block& b, int block, float* shared) {
    constexpr int E = 16 / sizeof(T);
    const int positions = b.height * b.width, chunks = over(positions, b.spatial_chunk), units = b.channels / E;
    const int n = block / chunks, begin = block % chunks * b.spatial_chunk;
    const int count = min(b.spatial_chunk, positions - begin), lane = threadIdx.x % LANES, row = threadIdx.x / LANES;
    float* gates = shared;
    float* sums = gates + b.channels;                     // [position, lane], a lane more to miss the same bank
    float* peaks = sums + b.spatial_chunk * (LANES + 1);  // likewise
    copy_floats(gates, b.gate + static_cast<long long>(n) * b.channels, b.channels);
    copies_commit();
    copies_wait<0>();
    block_barrier<6>();
    const Unit* x = static_cast<const Unit*>(b.x) + (static_cast<long long>(n) * positions + begin) * units;
    for (int p = row * EACH; p < count; p += BLOCK / LANES * EACH) {
        float sum[EACH], peak[EACH];
#pragma unroll
        for (int q = 0; q < EACH; ++q) {
            sum[q] = 0;
            peak[q] = MINUS_INFINITY;
        }
#pragma unroll(4 / EACH)
        for (int u = lane; u < units; u += LANES) {
            Unit one[EACH];
#pragma unroll
            for (int q = 0; q < EACH; ++q) one[q] = load16(x + min(p + q, count - 1) * units + u);
            float g[E];
            gates_of<T>(gates, u, g);
#pragma unroll
            for (int q = 0; q < EACH; ++q)
#pragma unroll
                for (int i = 0; i < E; ++i) {
                    const float value = element<T>(one[q], i) * g[i];
                    sum[q] += value;
                    peak[q] = max_or_nan(peak[q], value);
                }
        }
#pragma unroll
        for (int q = 0; q < EACH; ++q)
            if (p + q < count) {
                sums[(p + q) * (LANES + 1) + lane] = sum[q];
                peaks[(p + q) * (LANES + 1) + lane] = peak[q];
            }
    }
    block_barrier<7>();
    float* to = b.maps + static_cast<long long>(n) * 2 * positions + begin;
    for (int p = threadIdx.x; p < count; p += BLOCK) {
        float sum = 0, peak = MINUS_INFINITY;
        for (int i = 0; i < LANES; ++i) {
            sum += sums[p * (LANES + 1) + i];
            peak = max_or_nan(peak, peaks[p * (LANES + 1) + i]);
        }
        to[p] = sum / b.channels;
        to[positions + p] = peak;
    }
}

// Row dy of the size x size convolution at one position. maps: rows `top` to `bottom` of mean and maximum.
__device__ inline float convolve_row(const Block& b, const float* maps, const float* kernel, int top, int bottom,
                                     int position, int dy) {
    const int reach = b.size / 2, y = position / b.width, x = position - y * b.width, row = y + dy - reach;
    if (row < top || row >= bottom) return 0;
    const float *mean = maps + (row - top) * b.width + x - reach, *peak = mean + (bottom - top) * b.width;
    const float *mean_weight = kernel + dy * b.size, *peak_weight = mean_weight + b.size * b.size;
    float logit = 0;
    for (int dx = max(0, reach - x); dx < min(b.size, b.width + reach - x); ++dx)
        logit += mean_weight[dx] * mean[dx] + peak_weight[dx] * peak[dx];
    return logit;
}

template <typename T>
__device__ inline void apply(const Block& b, int block, float* shared) {
    constexpr int E = 16 / sizeof(T);
    const int positions = b.height * b.width, chunks = over(positions, b.apply_chunk), units = b.channels / E;
    const int n = b.cases - 1 - block / chunks, begin = block % chunks * b.apply_chunk;
    const int count = min(b.apply_chunk, positions - begin);
    float* gates = shared;
    float* places = gates + b.channels;                        // gate of each position
    float* rows = places + over(b.apply_chunk, 4) * 4;         // [dy, position]
    float* kernel = rows + b.size * b.apply_chunk;             // [2, size, size]
    float* maps = kernel + 2 * b.size * b.size;                // rows of mean and maximum that the convolution needs
    const long long origin = (static_cast<long long>(n) * positions + begin) * units;
    copy_floats(gates, b.gate + static_cast<long long>(n) * b.channels, b.channels);
    copies_commit();
    if (b.kind == BLOCK_CBAM) {
        const int top = max(0, begin / b.width - b.size / 2);
        const int bottom = min(b.height, (begin + count - 1) / b.width + b.size / 2 + 1), held = (bottom - top) * b.width;
        const float* from = b.maps + static_cast<long long>(n) * 2 * positions + top * b.width;
        for (int i = threadIdx.x; i < 2 * held; i += BLOCK) maps[i] = from[i < held ? i : positions + i - held];
        for (int i = threadIdx.x; i < 2 * b.size * b.size; i += BLOCK) kernel[i] = b.kernel[i];
        block_barrier<10>();
        for (int i = threadIdx.x; i < b.size * count; i += BLOCK)
            rows[i] = convolve_row(b, maps, kernel, top, bottom, begin + i % count, i / count);
        block_barrier<8>();
        for (int i = threadIdx.x; i < count; i += BLOCK) {
            float logit = 0;
            for (int dy = 0; dy < b.size; ++dy) logit += rows[dy * count + i];
            places[i] = sigmoid(logit);
        }
    }
    copies_wait<0>();
    block_barrier<9>();
    const Unit *x = static_cast<const Unit*>(b.x) + origin, *residual = static_cast<const Unit*>(b.residual) + origin;
    Unit* y = static_cast<Unit*>(b.y) + origin;
    constexpr int AHEAD = 4;  // loads before the first store, which the compiler can't move them across
    for (int start = threadIdx.x; start < count * units; start += AHEAD * BLOCK) {
        Unit one[AHEAD], other[AHEAD];
#pragma unroll
        for (int k = 0; k < AHEAD; ++k) {
            const int i = min(start + k * BLOCK, count * units - 1);
            one[k] = load16(x + i);
            other[k] = load16(residual + i);
        }
#pragma unroll
        for (int k = 0; k < AHEAD; ++k) {
            const int i = start + k * BLOCK, p = i / units;
            if (i >= count * units) break;
            float value[E];
            gates_of<T>(gates, i - p * units, value);
            const float place = b.kind == BLOCK_CBAM ? places[p] : 1;
#pragma unroll
            for (int e = 0; e < E; ++e) value[e] = relu(element<T>(one[k], e) * value[e] * place + element<T>(other[k], e));
            store16(y + i, unit_of<T>(value));
        }
    }
}

// ---------------------------------------------------------------- the entries

// The block, with the numbers that the kernel is compiled for as constants, where they are given.
__device__ inline Block known(const Block& given) {
    Block b = given;
    [[maybe_unused]] const auto know = [&](int kind, int channels, int inner_channels, int hidden, int height, int width,
                                           int size, int samples, int hidden_columns, int gate_columns) {
        b.kind = kind, b.channels = channels, b.inner_channels = inner_channels, b.hidden = hidden;
        b.height = height, b.width = width, b.size = size, b.samples = samples;
        b.hidden_columns = hidden_columns, b.gate_columns = gate_columns;
    };
#ifdef KNOWN
    know(KNOWN);
#endif
    return b;
}

template <typename T>
__device__ inline void block_attention(const Block& given, int launch) {
    DYNAMIC_SHARED(raw);
    float* shared = reinterpret_cast<float*>(raw);
    const Block b = known(given);
    const int block = blockIdx.x;
    if (launch == 0) statistics<T>(b, block, shared);
    if (launch == 1) hidden(b, block, shared);
    if (launch == 2) gate(b, block, shared);
    if (launch == 3) {
        const int each = b.spatial_chunk / max(1, BLOCK / LANES);
        if (each >= 4)
            spatial<T, 4>(b, block, shared);
        else if (each >= 2)
            spatial<T, 2>(b, block, shared);
        else
            spatial<T, 1>(b, block, shared);
    }
    if (launch == 4) apply<T>(b, block, shared);
}

#ifdef ELEMENT

#define ENTRY(name, launch)                                                                      \
    extern "C" __global__ void __launch_bounds__(THREADS) name(const __grid_constant__ Block b) { \
        block_attention<ELEMENT>(b, launch);                                                      \
    }
ENTRY(block_attention_statistics, 0)
ENTRY(block_attention_hidden, 1)
ENTRY(block_attention_gate, 2)
ENTRY(block_attention_spatial, 3)
ENTRY(block_attention_apply, 4)

#endif
