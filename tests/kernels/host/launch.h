// Runs the blocks of a launch on the CPU.

#pragma once

#include <atomic>
#include <thread>

#include "cuda_shim.h"

// One launch of `blocks` blocks: `resident` at a time, in an order that no kernel may rely on. kernel() is a thread's.
template <typename Kernel>
void launch(int blocks, int threads_of_block, int shared_bytes, int resident, Kernel kernel) {
    std::vector<int> order(blocks);
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int>(i);
    for (std::size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[i * 7919 % i]);
    std::reverse(order.begin(), order.end());

    std::atomic<int> next = 0;
    std::deque<host::Barrier> barriers;
    std::vector<int> taken(resident);  // what each of them runs, by its first thread
    std::vector<unsigned char*> memory;
    std::vector<std::thread> threads;
    for (int slot = 0; slot < resident; ++slot) {
        barriers.emplace_back(threads_of_block);
        // Of the exact size, for AddressSanitizer.
        memory.push_back(static_cast<unsigned char*>(std::aligned_alloc(16, std::max(16, (shared_bytes + 15) / 16 * 16))));
        std::memset(memory[slot], 0xff, shared_bytes);
    }
    for (int slot = 0; slot < resident; ++slot)
        for (int t = 0; t < threads_of_block; ++t)
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
                    blockDim.x = threads_of_block;
                    gridDim.x = blocks;
                    kernel();
                    host::end_of_block();
                    __syncthreads();
                    if (t == 0) std::memset(host::shared, 0xff, shared_bytes);
                    __syncthreads();
                }
            });
    for (auto& one : threads) one.join();
    for (auto* one : memory) std::free(one);
}
