// Runs attention_pool.cu on the CPU: a request on stdin, the output buffers on stdout (see conftest.py for the format).

#include "cuda_shim.h"

#include "attention_pool.cu"

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <thread>
#include <vector>

Unit load16(const void* shared) {
    Unit unit;
    std::memcpy(&unit, shared, 16);
    return unit;
}
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
    std::int32_t element, channels_last, stages, positions[2], threads, resident, launches, missing_barrier, overread;
    std::int32_t blocks[4], shared_bytes[4], buffers, problem_bytes;
};
struct Buffer {
    std::int64_t field, bytes, output;  // where in Problem its address belongs; its size; whether it is sent back
};

using Entry = void (*)(const Problem&, int);

template <typename T, bool LAST, int S0, int S1>
Entry entry(int stages) {
    if (stages == 1) return attention_pool_block<T, LAST, S0, S1, 1>;
    if (stages == 2) return attention_pool_block<T, LAST, S0, S1, 2>;
    return attention_pool_block<T, LAST, S0, S1, 3>;
}
template <typename T>
Entry entry(const Request& r) {
    const int first = r.positions[0], second = r.positions[1];
    if (r.channels_last) return entry<T, true, 0, 0>(r.stages);
    if (first == 0 && second == 0) return entry<T, false, 0, 0>(r.stages);
    if (first == 12 && second == 15) return entry<T, false, 12, 15>(r.stages);
#ifndef FEW
    if (first == 49 && second == 49) return entry<T, false, 49, 49>(r.stages);
    if (first == 12 && second == 0) return entry<T, false, 12, 0>(r.stages);
    if (first == 0 && second == 15) return entry<T, false, 0, 15>(r.stages);
#endif
    return nullptr;
}
Entry entry(const Request& r) {
    if (r.element == 0) return entry<float>(r);
#ifndef FEW
    if (r.element == 1) return entry<Half>(r);
    if (r.element == 2) return entry<Bfloat16>(r);
#endif
    return nullptr;
}

// One launch: `resident` blocks at a time, in an order that no kernel may rely on.
void launch(const Request& r, const Problem& problem, Entry kernel, int number) {
    std::vector<int> order(r.blocks[number]);
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int>(i);
    for (std::size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[i * 7919 % i]);
    std::reverse(order.begin(), order.end());

    std::atomic<int> next = 0;
    std::deque<host::Barrier> barriers;
    std::vector<int> taken(r.resident);  // what each of them runs, by its first thread
    std::vector<unsigned char*> memory;
    std::vector<std::thread> threads;
    for (int slot = 0; slot < r.resident; ++slot) {
        barriers.emplace_back(r.threads);
        // Of the exact size, for AddressSanitizer.
        memory.push_back(static_cast<unsigned char*>(std::aligned_alloc(16, std::max(16, (r.shared_bytes[number] + 15) / 16 * 16))));
        std::memset(memory[slot], 0xff, r.shared_bytes[number]);
    }
    for (int slot = 0; slot < r.resident; ++slot)
        for (int t = 0; t < r.threads; ++t)
            threads.emplace_back([&, slot, t] {
                host::block = &barriers[slot];
                host::shared = memory[slot];
                while (true) {
                    if (t == 0) taken[slot] = next++;
                    __syncthreads();
                    const int i = taken[slot];
                    if (i >= static_cast<int>(order.size())) break;
                    threadIdx.x = t;
                    blockIdx.x = order[i];
                    blockDim.x = r.threads;
                    gridDim.x = r.blocks[number];
                    kernel(problem, number);
                    host::end_of_block();
                    __syncthreads();
                    if (t == 0) std::memset(host::shared, 0xff, r.shared_bytes[number]);
                    __syncthreads();
                }
            });
    for (auto& one : threads) one.join();
    for (auto* one : memory) std::free(one);
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
    for (int i = 0; i < request.launches; ++i)
        for (int number = 0; number < 4; ++number)
            if (request.blocks[number]) launch(request, problem, kernel, number);
    for (auto& [buffer, data] : buffers) {
        if (buffer.output) std::fwrite(data, 1, buffer.bytes, stdout);
        std::free(data);
    }
}
