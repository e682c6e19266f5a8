// Runs attention_pool.cu on the CPU: a request on stdin, the output buffers on stdout (see conftest.py for the format).

#include "cuda_shim.h"

#include "attention_pool.cu"

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <thread>

float to_float(Half x) {
    _Float16 value;
    std::memcpy(&value, &x.bits, 2);
    return static_cast<float>(value);
}
float to_float(Bfloat16 x) {
    const std::uint32_t bits = static_cast<std::uint32_t>(x.bits) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

struct Request {
    std::int32_t element, channels_last, exchange, samples, threads, blocks, shared_bytes, resident, launches;
    std::int32_t missing_barrier, overread, buffers, problem_bytes;
};
struct Buffer {
    std::int64_t field, bytes, output;  // where in Problem its address belongs; its size; whether it is sent back
};

using Entry = void (*)(const Problem&);

template <typename T, bool LAST, int HOW>
Entry entry(int samples) {
    if (samples == 1) return attention_pool_block<T, LAST, HOW, 1>;
    if (samples == 2) return attention_pool_block<T, LAST, HOW, 2>;
#ifndef FEW
    if (samples == 8) return attention_pool_block<T, LAST, HOW, 8>;
#endif
    return nullptr;
}
template <typename T, bool LAST>
Entry entry(int how, int samples) {
    if (how == ALONE) return entry<T, LAST, ALONE>(samples);
    if (how == CLUSTER) return entry<T, LAST, CLUSTER>(samples);
    return entry<T, LAST, GRID>(samples);
}
template <typename T>
Entry entry(bool last, int how, int samples) {
    return last ? entry<T, true>(how, samples) : entry<T, false>(how, samples);
}
Entry entry(const Request& r) {
    if (r.element == 0) return entry<float>(r.channels_last, r.exchange, r.samples);
#ifndef FEW
    if (r.element == 1) return entry<Half>(r.channels_last, r.exchange, r.samples);
    if (r.element == 2) return entry<Bfloat16>(r.channels_last, r.exchange, r.samples);
#endif
    return nullptr;
}

// `resident` blocks at a time, in an order that no kernel may rely on: blocks of a cluster together, the rest shuffled.
void launch(const Request& r, const Problem& problem, Entry kernel) {
    const int together = r.exchange == CLUSTER ? problem.split : 1, clusters = r.resident / together;
    std::vector<int> order(r.blocks / together);
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int>(i);
    for (std::size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[i * 7919 % i]);
    std::reverse(order.begin(), order.end());

    std::deque<host::Cluster> cluster;
    std::deque<host::Barrier> block;
    for (int i = 0; i < clusters; ++i) {
        cluster.emplace_back(together * r.threads);
        for (int rank = 0; rank < together; ++rank) {
            block.emplace_back(r.threads);
            cluster[i].shared.push_back(static_cast<unsigned char*>(std::malloc(r.shared_bytes)));
            std::memset(cluster[i].shared[rank], 0xff, r.shared_bytes);
        }
    }
    std::atomic<int> next = 0;
    std::vector<int> taken(clusters);  // what each cluster runs, by its first thread
    std::vector<std::thread> threads;
    for (int slot = 0; slot < clusters * together; ++slot)
        for (int t = 0; t < r.threads; ++t)
            threads.emplace_back([&, slot, t] {
                host::cluster = &cluster[slot / together];
                host::block = &block[slot];
                host::shared = host::cluster->shared[slot % together];
                while (true) {
                    if (slot % together == 0 && t == 0) taken[slot / together] = next++;
                    cluster_barrier();
                    const int i = taken[slot / together];
                    if (i >= static_cast<int>(order.size())) break;
                    threadIdx.x = t;
                    blockIdx.x = order[i] * together + slot % together;
                    blockDim.x = r.threads;
                    gridDim.x = r.blocks;
                    kernel(problem);
                    __syncthreads();  // this block ends, and its shared memory with it, whatever its cluster does
                    if (t == 0) std::memset(host::shared, 0xff, r.shared_bytes);
                    cluster_barrier();
                }
            });
    for (auto& one : threads) one.join();
    for (auto& one : cluster)
        for (auto* memory : one.shared) std::free(memory);
}

void read(void* to, std::size_t bytes) {
    if (std::fread(to, 1, bytes, stdin) != bytes) {
        std::fprintf(stderr, "the request is too short\n");
        std::exit(2);
    }
}

int main() {
    Request request;
    read(&request, sizeof request);
    if (request.problem_bytes != sizeof(Problem)) {
        std::fprintf(stderr, "Problem has %zu bytes here and %d in Python\n", sizeof(Problem), request.problem_bytes);
        return 2;
    }
    Problem problem;
    read(&problem, sizeof problem);
    std::vector<std::pair<Buffer, unsigned char*>> buffers;
    for (int i = 0; i < request.buffers; ++i) {
        Buffer buffer;
        read(&buffer, sizeof buffer);
        auto* data = static_cast<unsigned char*>(std::malloc(buffer.bytes));  // of the exact size, for AddressSanitizer
        read(data, buffer.bytes);
        std::memcpy(reinterpret_cast<unsigned char*>(&problem) + buffer.field, &data, sizeof data);
        buffers.emplace_back(buffer, data);
    }
    const Entry kernel = entry(request);
    if (!kernel) {
        std::fprintf(stderr, "this build has no such kernel\n");
        return 2;
    }
    host::missing_barrier = request.missing_barrier;
    host::overread = request.overread;
    for (int i = 0; i < request.launches; ++i) launch(request, problem, kernel);
    for (auto& [buffer, data] : buffers) {
        if (buffer.output) std::fwrite(data, 1, buffer.bytes, stdout);
        std::free(data);
    }
}
