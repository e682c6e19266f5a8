// Attention pool: attention (ECA, CBAM or none) and global average pooling of two feature maps.
//
//   nvcc -std=c++17 -arch=sm_90 -cubin -Xptxas -v attention_pool.cu
//        -DELEMENT=Half -DCHANNELS_LAST=0 -DPOSITIONS0=49 -DPOSITIONS1=49 -DSTAGES=2
//
//   ELEMENT        float, Half or Bfloat16: what the feature maps hold. All arithmetic is float32.
//   CHANNELS_LAST  0: feature maps are [N, C, h, w]; 1: [N, h, w, C]
//   POSITIONS0, 1  h * w of each modality where the kernel is made for that size, else 0 for any size; needs
//                  [N, C, h, w] and whole groups: C a multiple of the elements of 16 bytes
//   KNOWN0, 1      if given, numbers of a modality as constants: see `modality_of`
//   STAGES         tiles in shared memory at once: one is worked on while the others are on their way
//
// Four launches, of which each reads what it needs once; nothing waits inside a launch for another block:
//
//   statistics  ECA and none: means of all channels. CBAM: means and maxima, times the slice's rows of the MLP's first
//               layer: each slice's part of the hidden units. The only one that reads device memory; the others find
//               the feature map in L2 where that can hold it.
//   hidden      CBAM: the sum of the parts, in order of the slices, and ReLU. ECA: g_c mean(x_c), which is mean(x g)_c.
//   spatial     CBAM: the channel gate of the slice, and with it each slice's part of sum and maximum over channels.
//   embedding   CBAM: mean and maximum map of the parts, the k x k convolution, s the spatial gate, g_c mean(x_c s).
//
// A tile is `samples` samples of a slice of the channels, so that a block reads the MLP's weights of its slice once for
// all of its tiles. For a known number of positions S a tile lies in shared memory as groups: E channels, as many as 16
// bytes hold elements, are S units of 16 bytes; groups are S | 1 units apart, so that lanes which read the same unit of
// successive groups meet 32 banks in turn. For any other size, and for channels last, elements are read one by one.
//
// A NaN in a feature map gives NaN wherever the formula does: max keeps NaN, and ReLU is written as "below 0 is 0".
// Results do not depend on timing: every sum has a fixed order, and there are no atomics on floats.

#define KIND_NONE 0
#define KIND_ECA 1
#define KIND_CBAM 2

#include "primitives.cuh"

// Mirrored by MODALITY and PROBLEM in attention_pool.py. hidden4: the hidden units in fours, filled up with zeros.
struct Modality {
    const void* x;          // feature map
    const float* fc1;       // [C, hidden4 * 4]: transposed
    const float* fc1_bias;  // [hidden]
    const float* fc2;       // [hidden, channels4 * 4]: transposed and padded with zeros
    const float* fc2_bias;  // [C]
    const float* kernel;    // ECA: [size]; CBAM: [2, size, size] over (mean, maximum)
    float* means;           // ECA: [cases, C]
    float* parts;           // CBAM: [slices, cases, 2, hidden4 * 4], of the hidden units: mean and maximum path
    float* hidden_units;    // CBAM: [cases, hidden4 * 4]
    float* gate;            // CBAM: [cases, C], over channels
    float* maps;            // CBAM: [slices, cases, 2, h * w], sum and maximum over a slice
    int kind, channels, height, width, hidden, size;
    int slice, samples;  // of a tile: channels, a multiple of 4 and where specialised of 8, and samples
    int chunks;          // `statistics`: blocks that share the tiles of a slice
    int spatial_chunks;  // `spatial`: likewise
    int wide, ranges;    // `embedding`: channels of a tile, and blocks that share the tiles of a sample
    int column;          // where this modality begins in a row of `out`
};
struct Problem {
    Modality modality[2];
    float* out;                 // [cases, columns]
    unsigned long long* trace;  // null, or the elements loaded of each modality
    int cases, columns;
    int first[4];  // blocks of the first modality in each launch; the others belong to the second
};

// ---------------------------------------------------------------- small matrix products

// finish(row, column, sum) of in [rows, stride] times weights [length, columns] in shared memory. The order of a sum
// depends on how many rows there is room for, and not on how many there are. A thread has four rows and four columns
// and, where there are more threads, a share of the length. `columns`, `length` and `stride` are multiples of 4, and
// there is room for 4 rows at a time in `in` and for 16 floats a thread in `scratch`.
template <typename Finish>
__device__ inline void multiply(const float* weights, int columns, const float* in, int stride, int room, int rows,
                                int length, float* scratch, Finish finish) {
    const int quads = columns / 4, items = quads * over(room, 4);
    const int shares = min(max(1, BLOCK / items), length / 4), share = threadIdx.x / items;
    float4* sums = reinterpret_cast<float4*>(scratch);  // [share, row, quad]
    for (int item = threadIdx.x % items; item < items && share < shares; item += BLOCK) {
        const int quad = item % quads, row = item / quads * 4;
        float4 sum[4];
#pragma unroll
        for (int r = 0; r < 4; ++r) sum[r] = {0, 0, 0, 0};
#pragma unroll 1
        for (int k = 4 * share; k < length; k += 4 * shares) {
            float4 w[4];
#pragma unroll
            for (int j = 0; j < 4; ++j) w[j] = *reinterpret_cast<const float4*>(weights + (k + j) * columns + 4 * quad);
#pragma unroll
            for (int r = 0; r < 4; ++r) {
                const float4 x = *reinterpret_cast<const float4*>(in + (row + r) * stride + k);
                const float each[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    sum[r].x += w[j].x * each[j];
                    sum[r].y += w[j].y * each[j];
                    sum[r].z += w[j].z * each[j];
                    sum[r].w += w[j].w * each[j];
                }
            }
        }
#pragma unroll
        for (int r = 0; r < 4; ++r)
            if (row + r < room) sums[(share * room + row + r) * quads + quad] = sum[r];
    }
    block_barrier<1>();
    for (int i = threadIdx.x; i < rows * columns; i += BLOCK) {
        float sum = 0;
        for (int k = 0; k < shares; ++k) sum += scratch[k * room * columns + i];
        finish(i / columns, i % columns, sum);
    }
}

// ---------------------------------------------------------------- a tile of any size

// finish(row, sum, maximum) for each row of `count` samples of value(sample, row, r, x[...]), r in [0, length).
// ALONG: element r of row is x[row * length + r]. Otherwise a sample is a [length, rows_per_sample] matrix and its rows
// are the columns of that: x[sample * rows_per_sample * length + r * rows_per_sample + row % rows_per_sample].
// Where a full tile has fewer rows than threads, several threads share a row: in a tile that is not full a sum has the
// same order. In both cases the threads of a warp read different banks: along a row, each starts at another place.
template <bool ALONG, typename T, typename Value, typename Finish>
__device__ inline void reduce_rows(const T* x, int samples, int count, int rows_per_sample, int length, float* scratch,
                                   Value value, Finish finish) {
    const int threads = BLOCK, t = threadIdx.x, full = samples * rows_per_sample, rows = count * rows_per_sample;
    const int parts = full >= threads ? 1 : min(threads / full, length);
    const int step = ALONG ? 1 : rows_per_sample;
    const int part = parts == 1 ? 0 : ALONG ? t % parts : t / full;
    float sum = 0, peak = 0;
    for (int row = parts == 1 ? t : ALONG ? t / parts : t % full; row < rows && part < parts; row += threads) {
        const int sample = row / rows_per_sample;
        const T* from = ALONG ? x + row * length : x + sample * rows_per_sample * (length - 1) + row;
        const int turn = ALONG && length % 2 == 0 ? row % rows_per_sample * parts % length : 0;
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
    if (parts > 1) {
        scratch[t] = sum;
        scratch[threads + t] = peak;
    }
    block_barrier<2>();
    if (parts > 1 && t < rows) {
        sum = 0;
        peak = MINUS_INFINITY;
        for (int k = 0; k < parts; ++k) {
            const int at = ALONG ? t * parts + k : k * full + t;
            sum += scratch[at];
            peak = max_or_nan(peak, scratch[threads + at]);
        }
        finish(t, sum, peak);
    }
}

// What the launches ask of a tile: `count` samples, of `samples` that there is room for, of `n` channels, at `stage`.
// Each `over_...` has a barrier behind its last read of the stage. Gates: for over_channels gates(n) floats of each
// sample, a channel's at gate_of(c, n); for over_positions<GATED> [position], as `put` has written it.
template <typename T, bool LAST>
struct AnyTile {
    int positions;

    __device__ explicit AnyTile(const Modality& m) : positions(m.height * m.width) {}
    __device__ int bytes(int samples, int n) const { return over(samples * n * positions * (int)sizeof(T), 16) * 16; }
    __device__ int gates(int n) const { return n; }
    __device__ int gate_of(int c, int) const { return c; }
    __device__ int gate_floats() const { return positions; }
    __device__ void put(float* gate, int position, float value) const { gate[position] = value; }

    __device__ void load(unsigned char* stage, const Modality& m, int first, int count, int channel, int n,
                         bool last) const {
        const int runs = LAST ? count * positions : count, length = LAST ? n : n * positions;
        const long long stride = LAST ? m.channels : static_cast<long long>(m.channels) * positions;
        const T* from = static_cast<const T*>(m.x) + static_cast<long long>(first) * m.channels * positions +
                        (LAST ? channel : static_cast<long long>(channel) * positions);
        T* to = reinterpret_cast<T*>(stage);
        constexpr int CHUNK = 16 / sizeof(T);
        if (length % CHUNK == 0 && stride % CHUNK == 0 && reinterpret_cast<unsigned long long>(from) % 16 == 0) {
            const int chunks = length / CHUNK;
            for (int i = threadIdx.x; i < runs * chunks; i += BLOCK) {
                const int run = i / chunks, offset = (i - run * chunks) * CHUNK;
                copy16(to + run * length + offset, from + run * stride + offset, last);
            }
        } else {
            for (int i = threadIdx.x; i < runs * length + PLANTED_OVERREAD; i += BLOCK) {
                const int run = i / length;
                to[min(i, runs * length - 1)] = from[run * stride + (i - run * length)];
            }
        }
    }

    template <bool PEAK, bool GATED, typename Finish>
    __device__ void over_positions(const unsigned char* stage, int samples, int count, int n, const float* gate,
                                   float* scratch, Finish finish) const {
        reduce_rows<!LAST>(
            reinterpret_cast<const T*>(stage), samples, count, n, positions, scratch,
            [&](int, int, int r, float x) { return GATED ? x * gate[r] : x; },
            [&](int row, float sum, float peak) { finish(row / n, row % n, sum, peak); });
    }
    template <typename Finish>
    __device__ void over_channels(const unsigned char* stage, int samples, int count, int n, const float* gate,
                                  float* scratch, Finish finish) const {
        reduce_rows<LAST>(
            reinterpret_cast<const T*>(stage), samples, count, positions, n, scratch,
            [&](int sample, int, int r, float x) { return x * gate[sample * n + r]; },
            [&](int row, float sum, float peak) { finish(row / positions, row % positions, sum, peak); });
    }
};

// ---------------------------------------------------------------- a tile of S positions, in units of 16 bytes

template <typename T, int S>
struct FixedTile {
    // A channel has elements for WHOLE units and REST more. It begins at a multiple of PLACE and reaches into UNITS.
    static constexpr int E = 16 / sizeof(T), STRIDE = S | 1;
    static constexpr int WHOLE = S / E, REST = S % E, PLACE = REST ? REST : E, UNITS = WHOLE + (REST > 0);
    static constexpr int GATE = (S + 3) / 4 * 4;
    static constexpr int positions = S;
    static_assert(WHOLE > 0 && E % PLACE == 0, "a channel would reach into another number of units");

    __device__ explicit FixedTile(const Modality&) {}
    static __device__ int bytes(int samples, int n) { return samples * n / E * STRIDE * 16; }
    // Groups of threads that share the channels of a sample in over_channels, in fours of groups.
    static __device__ int shares(int samples, int n) {
        return max(1, min(BLOCK / (samples * E * UNITS), over(n / E, 4)));
    }
    // The channel gate: [sample, channel of a group, group], of which a thread takes four groups at a time.
    static __device__ int gates(int n) { return E * over(n / E, 4) * 4; }
    static __device__ int gate_of(int c, int n) { return c % E * over(n / E, 4) * 4 + c / E; }
    // The spatial gate, once for each place in a unit at which a channel may begin, in the order of over_positions.
    static __device__ int gate_floats() { return E / PLACE * GATE; }
    static __device__ void put(float* gate, int position, float value) {
        for (int skip = 0; skip < E; skip += PLACE)
            gate[skip / PLACE * GATE + (position < S - REST ? (position + skip) % (S - REST) : position)] = value;
    }

    __device__ void load(unsigned char* stage, const Modality& m, int first, int count, int channel, int n,
                         bool last) const {
        const long long stride = static_cast<long long>(m.channels) * S;
        const T* x = static_cast<const T*>(m.x) + first * stride + static_cast<long long>(channel) * S;
        for (int u = threadIdx.x; u < n / E * S; u += BLOCK) {  // units of a sample: contiguous
            const T* from = x + u * E;
            unsigned char* to = stage + (STRIDE == S ? u : u + u / S) * 16;
            for (int sample = 0; sample < count; ++sample, from += stride, to += n / E * STRIDE * 16)
                copy16(to, from, last);
        }
    }

    // A lane takes a group, and each LANES threads one channel of it, all by the same instructions. Instructions for each
    // part of a group, with all places known, were slower on an H200: they miss the instruction cache. What a channel has
    // of its first and its last unit makes one, and leaves REST elements of the last.
    template <bool PEAK, bool GATED, typename Finish>
    __device__ void over_positions(const unsigned char* stage, int, int count, int n, const float* gate, float*,
                                   Finish finish) const {
        const int groups = n / E, total = count * groups, lane = threadIdx.x % LANES;
        for (int turn = threadIdx.x / LANES; turn < E * over(total, LANES); turn += BLOCK / LANES) {
            const int c = turn % E, g = turn / E * LANES + lane;
            if (g >= total) continue;
            const int first = c * S / E, skip = c * S % E;  // unit, and its elements that belong to the channel before
            const unsigned char* from = stage + (g * STRIDE + first) * 16;
            const float* weights = gate + skip / PLACE * GATE;
            float sum = 0;
            const auto add = [&](const Unit& unit, int j) {
                float weight[E];
                if (GATED) {
#pragma unroll
                    for (int i = 0; i < E; i += 4) {
                        const float4 w = *reinterpret_cast<const float4*>(weights + j * E + i);
                        weight[i] = w.x, weight[i + 1] = w.y, weight[i + 2] = w.z, weight[i + 3] = w.w;
                    }
                }
#pragma unroll
                for (int i = 0; i < E; ++i) sum += GATED ? element<T>(unit, i) * weight[i] : element<T>(unit, i);
            };
            Unit unit = load16(from);
            if (REST) unit = spliced<T>(unit, load16(from + WHOLE * 16), skip);
            unsigned peak = max_of_words<T>(unit.words[0], unit);
            add(unit, 0);
#pragma unroll 4
            for (int j = 1; j < WHOLE; ++j) {
                unit = load16(from + j * 16);
                peak = max_of_words<T>(peak, unit);
                add(unit, j);
            }
            const Unit peaks = {{peak}};
            float most = element<T>(peaks, 0);
            if (E > 4) most = max_or_nan(most, element<T>(peaks, 1));
#pragma unroll
            for (int i = S - REST; i < S; ++i) {
                const float value = to_float(reinterpret_cast<const T*>(stage + g * STRIDE * 16)[c * S + i]);
                sum += GATED ? value * weights[i] : value;
                most = max_or_nan(most, value);
            }
            const int sample = g / groups;
            finish(sample, (g - sample * groups) * E + c, sum, most);
        }
        block_barrier<3>();
    }

    // A thread takes a unit of a channel of a group, in all groups of a sample or a share of them, under one gate each.
    // Where two channels meet in a unit, two threads take it; nobody reads what they make of the other's elements.
    template <typename Finish>
    __device__ void over_channels(const unsigned char* stage, int samples, int count, int n, const float* gate,
                                  float* scratch, Finish finish) const {
        constexpr int ITEMS = E * UNITS;
        const int groups = n / E, share = shares(samples, n), items = count * share * ITEMS;
        float *sums = scratch, *peaks = sums + items * E;  // [sample, share, channel of a group, place]
        for (int item = threadIdx.x; item < items; item += BLOCK) {
            const int q = item / ITEMS, sample = q / share, c = item / UNITS % E;
            int g = (q - sample * share) * 4;
            const unsigned char* unit = stage + ((sample * groups + g) * STRIDE + c * S / E + item % UNITS) * 16;
            const float* four = gate + sample * gates(n) + gate_of(c, n) + g;
            float sum[E], peak[E];
#pragma unroll
            for (int i = 0; i < E; ++i) {
                sum[i] = 0;
                peak[i] = MINUS_INFINITY;
            }
#pragma unroll 1
            for (; g < groups; g += share * 4, four += share * 4, unit += share * 4 * STRIDE * 16) {
                const float4 w = *reinterpret_cast<const float4*>(four);
                const float each[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
                for (int k = 0; k < 4; ++k)
                    if (groups % 4 == 0 || g + k < groups) {
                        const Unit x = load16(unit + k * STRIDE * 16);
#pragma unroll
                        for (int i = 0; i < E; ++i) {
                            const float value = element<T>(x, i) * each[k];
                            sum[i] += value;
                            peak[i] = max_or_nan(peak[i], value);
                        }
                    }
            }
#pragma unroll
            for (int i = 0; i < E; i += 4) {
                *reinterpret_cast<float4*>(sums + item * E + i) = {sum[i], sum[i + 1], sum[i + 2], sum[i + 3]};
                *reinterpret_cast<float4*>(peaks + item * E + i) = {peak[i], peak[i + 1], peak[i + 2], peak[i + 3]};
            }
        }
        block_barrier<4>();
#pragma unroll 1
        for (int i = threadIdx.x; i < count * S; i += BLOCK) {
            const int sample = i / S, position = i - sample * S;
            float sum = 0, peak = MINUS_INFINITY;
            for (int part = 0; part < share; ++part)
#pragma unroll
                for (int c = 0; c < E; ++c) {
                    const int at = (sample * share + part) * ITEMS * E + position + c * UNITS * E + c * S % E;
                    sum += sums[at];
                    peak = max_or_nan(peak, peaks[at]);
                }
            finish(sample, position, sum, peak);
        }
    }
};

template <typename T, bool LAST, int S>
struct TileOf {
    using type = FixedTile<T, S>;
};
template <typename T, bool LAST>
struct TileOf<T, LAST, 0> {
    using type = AnyTile<T, LAST>;
};

// ---------------------------------------------------------------- the launches

// work(tile, stage) for tiles first, first + step, ... below `tiles`, with DEPTH - 1 loads on their way beside it. It
// has a barrier behind its last read of the stage.
template <int DEPTH, typename Load, typename Work>
__device__ inline void stream(int first, int step, int tiles, Load load, Work work) {
    for (int ahead = 0; ahead < DEPTH - 1; ++ahead) {
        if (first + ahead * step < tiles) load(first + ahead * step, ahead);
        copies_commit();
    }
    for (int tile = first, stage = 0; tile < tiles; tile += step, stage = (stage + 1) % DEPTH) {
        const int next = tile + (DEPTH - 1) * step;
        if (next < tiles) load(next, (stage + DEPTH - 1) % DEPTH);
        copies_commit();
        copies_wait<DEPTH - 1>();
        block_barrier<5>();
        work(tile, stage);
    }
}

// One block: a slice of the channels, and every chunks-th tile of it.
struct Slice {
    int index, begin, own, chunk, tiles;
    __device__ Slice(const Modality& m, int block, int chunks, int cases)
        : index(block / chunks),
          begin(index * m.slice),
          own(m.channels % m.slice ? min(m.slice, m.channels - begin) : m.slice),
          chunk(block - index * chunks),
          tiles(over(cases, m.samples)) {}
};

template <typename Tile>
__device__ inline void load_tile(const Tile& tile, const Problem& p, const Modality& m, int which, unsigned char* stage,
                                 int first, int count, int channel, int n, bool last) {
    tile.load(stage, m, first, count, channel, n, last);
    if (p.trace && threadIdx.x == 0)
        atomicAdd(p.trace + which, static_cast<unsigned long long>(count) * n * tile.positions);
}

template <typename Tile, int DEPTH>
__device__ inline void statistics(const Problem& p, const Modality& m, int which, int block, unsigned char* shared) {
    const Tile tile(m);
    const Slice slice(m, block, m.chunks, p.cases);
    const int stage_bytes = tile.bytes(m.samples, m.slice), width = over(m.hidden, 4) * 4,
              rows = over(2 * m.samples, 4) * 4;
    const int stride = over(m.slice, 4) * 4 + 4;
    float* weights = reinterpret_cast<float*>(shared + DEPTH * stage_bytes);
    float* stats = weights + (m.kind == KIND_CBAM ? m.slice * width : 0);  // [mean and maximum of each sample, channel]
    float* scratch = stats + rows * stride;
    if (m.kind == KIND_CBAM)
        copy_floats(weights, m.fc1 + static_cast<long long>(slice.begin) * width, slice.own * width);
    if (m.kind == KIND_CBAM && slice.own % 4) {  // `multiply` takes channels in fours
        for (int i = slice.own * width + threadIdx.x; i < over(slice.own, 4) * 4 * width; i += BLOCK) weights[i] = 0;
        for (int i = threadIdx.x; i < rows * stride; i += BLOCK) stats[i] = 0;
    }
    const auto count_of = [&](int at) { return min(m.samples, p.cases - at * m.samples); };
    stream<DEPTH>(
        slice.chunk, m.chunks, slice.tiles,
        [&](int at, int stage) {
            load_tile(tile, p, m, which, shared + stage * stage_bytes, at * m.samples, count_of(at), slice.begin,
                      slice.own, m.kind != KIND_CBAM);
        },
        [&](int at, int stage) {
            const int first = at * m.samples, count = count_of(at);
            const unsigned char* here = shared + stage * stage_bytes;
            if (m.kind != KIND_CBAM) {
                tile.template over_positions<false, false>(
                    here, m.samples, count, slice.own, nullptr, scratch, [&](int sample, int c, float sum, float) {
                        const float mean = sum / tile.positions;
                        const long long row = first + sample;
                        if (m.kind == KIND_ECA)
                            m.means[row * m.channels + slice.begin + c] = mean;
                        else
                            p.out[row * p.columns + m.column + slice.begin + c] = mean;
                    });
                return;
            }
            tile.template over_positions<true, false>(here, m.samples, count, slice.own, nullptr, scratch,
                                                      [&](int sample, int c, float sum, float peak) {
                                                          stats[2 * sample * stride + c] = sum / tile.positions;
                                                          stats[(2 * sample + 1) * stride + c] = peak;
                                                      });
            block_barrier<6>();
            float* to = m.parts + (static_cast<long long>(slice.index) * p.cases + first) * 2 * width;
            multiply(weights, width, stats, stride, 2 * m.samples, 2 * count, over(slice.own, 4) * 4, scratch,
                     [&](int row, int h, float sum) { to[row * width + h] = sum; });
        });
}

// blocks: of this modality.
__device__ inline void hidden(const Problem& p, const Modality& m, int block, int blocks) {
    const int width = over(m.hidden, 4) * 4, slices = over(m.channels, m.slice), reach = m.size / 2;
    const int count = p.cases * (m.kind == KIND_CBAM ? width : m.channels);
    for (int i = block * BLOCK + threadIdx.x; i < count; i += blocks * BLOCK) {
        if (m.kind == KIND_CBAM) {
            const int sample = i / width, h = i - sample * width;
            float mean = 0, peak = 0;
#pragma unroll 16
            for (int slice = 0; slice < slices; ++slice) {
                const float* from = m.parts + (static_cast<long long>(slice) * p.cases + sample) * 2 * width + h;
                mean += from[0];
                peak += from[width];
            }
            // What fills up the fours is 0, whatever came of its weights of 0: infinity times 0 is none.
            m.hidden_units[i] = h < m.hidden ? relu(mean + m.fc1_bias[h]) + relu(peak + m.fc1_bias[h]) : 0;
        } else if (m.kind == KIND_ECA) {
            const int sample = i / m.channels, c = i - sample * m.channels;
            const float* means = m.means + static_cast<long long>(sample) * m.channels;
            float logit = 0;
            for (int j = max(0, reach - c); j < min(m.size, m.channels + reach - c); ++j)
                logit += m.kernel[j] * means[c + j - reach];
            p.out[static_cast<long long>(sample) * p.columns + m.column + c] = sigmoid(logit) * means[c];
        }
    }
}

template <typename Tile, int DEPTH>
__device__ inline void spatial(const Problem& p, const Modality& m, int which, int block, unsigned char* shared) {
    const Tile tile(m);
    const Slice slice(m, block, m.spatial_chunks, p.cases);
    const int width = over(m.hidden, 4) * 4, map_bytes = tile.bytes(m.samples, m.slice);
    // The hidden units come with the feature map; `multiply` takes rows of them in fours.
    const int stage_bytes = map_bytes + over(m.samples, 4) * 4 * width * 4;
    float* weights = reinterpret_cast<float*>(shared + DEPTH * stage_bytes);  // [hidden, slice]
    float* gate = weights + width * m.slice;                                  // of each sample, as the tile has it
    float* scratch = gate + m.samples * tile.gates(m.slice);
    const int columns = over(m.channels, 4) * 4;
    for (int i = threadIdx.x; i < width * m.slice / 4; i += BLOCK) {
        const int h = i / (m.slice / 4), c = (i - h * (m.slice / 4)) * 4;
        float* to = weights + h * m.slice + c;
        if (h < m.hidden && c < slice.own)
            copy16(to, m.fc2 + static_cast<long long>(h) * columns + slice.begin + c);
        else  // what `multiply` takes in besides
            to[0] = to[1] = to[2] = to[3] = 0;
    }
    const auto count_of = [&](int at) { return min(m.samples, p.cases - at * m.samples); };
    stream<DEPTH>(
        slice.chunk, m.spatial_chunks, slice.tiles,
        [&](int at, int stage) {
            unsigned char* here = shared + stage * stage_bytes;
            load_tile(tile, p, m, which, here, at * m.samples, count_of(at), slice.begin, slice.own, false);
            copy_floats(reinterpret_cast<float*>(here + map_bytes),
                        m.hidden_units + static_cast<long long>(at) * m.samples * width, count_of(at) * width);
        },
        [&](int at, int stage) {
            const int first = at * m.samples, count = count_of(at);
            const unsigned char* here = shared + stage * stage_bytes;
            const float* units = reinterpret_cast<const float*>(here + map_bytes);
            multiply(weights, m.slice, units, width, m.samples, count, width, scratch,
                     [&](int sample, int c, float sum) {
                         if (c >= slice.own) return;
                         const float g = sigmoid(sum + 2 * m.fc2_bias[slice.begin + c]);
                         gate[sample * tile.gates(slice.own) + tile.gate_of(c, slice.own)] = g;
                         m.gate[static_cast<long long>(first + sample) * m.channels + slice.begin + c] = g;
                     });
            block_barrier<7>();
            tile.over_channels(
                here, m.samples, count, slice.own, gate, scratch, [&](int sample, int position, float sum, float peak) {
                    float* to = m.maps +
                                (static_cast<long long>(slice.index) * p.cases + first + sample) * 2 * tile.positions +
                                position;
                    to[0] = sum;
                    to[tile.positions] = peak;
                });
        });
}

// Row dy of the k x k convolution over maps (mean, maximum) at one position; kernel: [2, k, k].
__device__ inline float convolve_row(const Modality& m, const float* maps, const float* kernel, int position, int dy) {
    const int reach = m.size / 2, y = position / m.width, x = position - y * m.width, row = y + dy - reach;
    if (row < 0 || row >= m.height) return 0;
    const float *mean = maps + row * m.width - reach, *peak = mean + m.height * m.width;
    float logit = 0;
    for (int dx = max(0, reach - x); dx < min(m.size, m.width + reach - x); ++dx)
        logit += kernel[dy * m.size + dx] * mean[x + dx] + kernel[(m.size + dy) * m.size + dx] * peak[x + dx];
    return logit;
}

template <typename Tile, int DEPTH>
__device__ inline void embedding(const Problem& p, const Modality& m, int which, int block, unsigned char* shared) {
    const Tile tile(m);
    const int sample = block / m.ranges, range = block - sample * m.ranges;
    const int positions = tile.positions, slices = over(m.channels, m.slice), stage_bytes = tile.bytes(1, m.wide);
    float* gate = reinterpret_cast<float*>(shared + DEPTH * stage_bytes);  // over positions, as the tile has it
    float* maps = gate + over(tile.gate_floats(), 4) * 4;                  // mean and maximum
    float* kernel = maps + over(2 * positions, 4) * 4;
    float* rows = kernel + over(2 * m.size * m.size, 4) * 4;  // [dy, position] of the convolution
    float* scratch = rows + over(m.size * positions, 4) * 4;
    for (int i = threadIdx.x; i < 2 * m.size * m.size; i += BLOCK) kernel[i] = m.kernel[i];
    const auto channels_of = [&](int at) { return min(m.wide, m.channels - at * m.wide); };
    bool ready = false;
    stream<DEPTH>(
        range, m.ranges, over(m.channels, m.wide),
        [&](int at, int stage) {
            load_tile(tile, p, m, which, shared + stage * stage_bytes, sample, 1, at * m.wide, channels_of(at), true);
        },
        [&](int at, int stage) {
            if (!ready) {
                for (int i = threadIdx.x; i < 2 * positions; i += BLOCK) {
                    const bool peaks = i >= positions;
                    float value = peaks ? MINUS_INFINITY : 0;
#pragma unroll 16
                    for (int slice = 0; slice < slices; ++slice) {
                        const float part =
                            m.maps[(static_cast<long long>(slice) * p.cases + sample) * 2 * positions + i];
                        value = peaks ? max_or_nan(value, part) : value + part;
                    }
                    maps[i] = peaks ? value : value / m.channels;
                }
                block_barrier<8>();
                for (int i = threadIdx.x; i < m.size * positions; i += BLOCK)
                    rows[i] = convolve_row(m, maps, kernel, i % positions, i / positions);
                block_barrier<9>();
                for (int i = threadIdx.x; i < positions; i += BLOCK) {
                    float logit = 0;
                    for (int dy = 0; dy < m.size; ++dy) logit += rows[dy * positions + i];
                    const float s = sigmoid(logit) / positions;
                    tile.put(gate, i, s);
                }
                block_barrier<10>();
                ready = true;
            }
            tile.template over_positions<false, true>(
                shared + stage * stage_bytes, 1, 1, channels_of(at), gate, scratch, [&](int, int c, float sum, float) {
                    const int channel = at * m.wide + c;
                    p.out[static_cast<long long>(sample) * p.columns + m.column + channel] =
                        m.gate[static_cast<long long>(sample) * m.channels + channel] * sum;
                });
        });
}

// ---------------------------------------------------------------- the entries

// A modality, with the numbers that the kernel is compiled for as constants: KNOWN0 and KNOWN1, where they are given.
template <int WHICH>
__device__ inline Modality modality_of(const Problem& p) {
    Modality m = p.modality[WHICH];
    [[maybe_unused]] const auto know = [&](int kind, int channels, int height, int width, int hidden, int size,
                                           int slice, int samples, int wide) {
        m.kind = kind, m.channels = channels, m.height = height, m.width = width, m.hidden = hidden, m.size = size;
        m.slice = slice, m.samples = samples, m.wide = wide;
    };
#ifdef KNOWN0
    if (WHICH == 0) know(KNOWN0);
#endif
#ifdef KNOWN1
    if (WHICH == 1) know(KNOWN1);
#endif
    return m;
}

template <typename T, bool LAST, int S, int DEPTH, int WHICH>
__device__ inline void run(const Problem& p, int launch, int block, int blocks, unsigned char* shared) {
    using Tile = typename TileOf<T, LAST, S>::type;
    const Modality m = modality_of<WHICH>(p);
    if (launch > 1 && m.kind != KIND_CBAM) return;  // no such block; where the kind is known, no such code either
    if (launch == 0) statistics<Tile, DEPTH>(p, m, WHICH, block, shared);
    if (launch == 1) hidden(p, m, block, blocks);
    if (launch == 2) spatial<Tile, DEPTH>(p, m, WHICH, block, shared);
    if (launch == 3) embedding<Tile, DEPTH>(p, m, WHICH, block, shared);
}

template <typename T, bool LAST, int S0, int S1, int DEPTH>
__device__ inline void attention_pool_block(const Problem& p, int launch) {
    DYNAMIC_SHARED(shared);
    const int block = blockIdx.x, blocks = gridDim.x, first = p.first[launch];
    if (block < first)
        run<T, LAST, S0, DEPTH, 0>(p, launch, block, first, shared);
    else
        run<T, LAST, S1, DEPTH, 1>(p, launch, block - first, blocks - first, shared);
}

#ifdef ELEMENT

#define ENTRY(name, launch)                                                                            \
    extern "C" __global__ void __launch_bounds__(THREADS, 2) name(const __grid_constant__ Problem p) { \
        attention_pool_block<ELEMENT, CHANNELS_LAST, POSITIONS0, POSITIONS1, STAGES>(p, launch);       \
    }
ENTRY(attention_pool_statistics, 0)
ENTRY(attention_pool_hidden, 1)
ENTRY(attention_pool_spatial, 2)
ENTRY(attention_pool_embedding, 3)

#endif
