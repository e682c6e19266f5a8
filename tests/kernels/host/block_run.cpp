// Runs block_attention.cu on the CPU: a request on stdin, the output buffers on stdout (see block_host.py).

#include "cuda_shim.h"
#include "launch.h"

#include "block_attention.cu"

#include "elements.h"
#include "request.h"

struct Request {
    std::int32_t element, threads, resident, launches, missing_barrier;
    std::int32_t blocks[5], shared_bytes[5], buffers, block_bytes;
};

int main() {
    Request request;
    read(&request, sizeof request);
    require_size(sizeof(Block), request.block_bytes);
    Block block;
    read(&block, sizeof block);
    const auto buffers = read_buffers(request.buffers, &block);
    host::missing_barrier = request.missing_barrier;
    for (int i = 0; i < request.launches; ++i)
        for (int number = 0; number < 5; ++number)
            if (request.blocks[number])
                launch(request.blocks[number], request.threads, request.shared_bytes[number], request.resident, [&] {
                    if (request.element == 0) block_attention<float>(block, number);
                    if (request.element == 1) block_attention<Half>(block, number);
                    if (request.element == 2) block_attention<Bfloat16>(block, number);
                });
    write_buffers(buffers);
}
