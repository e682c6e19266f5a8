// Runs attention_pool.cu on the CPU: a request on stdin, the output buffers on stdout (see conftest.py for the format).

#include "cuda_shim.h"
#include "launch.h"

#include "attention_pool.cu"

#include "elements.h"
#include "request.h"

struct Request {
    std::int32_t element, channels_last, stages, positions[2], threads, resident, launches, missing_barrier, overread;
    std::int32_t blocks[4], shared_bytes[4], buffers, problem_bytes;
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
    if (first == 12 && second == 18) return entry<T, false, 12, 18>(r.stages);
#ifndef FEW
    if (first == 49 && second == 49) return entry<T, false, 49, 49>(r.stages);
    if (first == 12 && second == 0) return entry<T, false, 12, 0>(r.stages);
    if (first == 0 && second == 18) return entry<T, false, 0, 18>(r.stages);
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

int main() {
    Request request;
    read(&request, sizeof request);
    require_size(sizeof(Problem), request.problem_bytes);
    Problem problem;
    read(&problem, sizeof problem);
    const auto buffers = read_buffers(request.buffers, &problem);
    const Entry kernel = entry(request);
    if (!kernel) {
        std::fprintf(stderr, "this build has no such kernel\n");
        return 2;
    }
    host::missing_barrier = request.missing_barrier;
    host::overread = request.overread;
    for (int i = 0; i < request.launches; ++i)
        for (int number = 0; number < 4; ++number)
            if (request.blocks[number])
                launch(request.blocks[number], request.threads, request.shared_bytes[number], request.resident,
                       [&] { kernel(problem, number); });
    write_buffers(buffers);
}
