// The attention pool's kernels as a function of the host: one launch of tests/kernels/host/run.cpp, on the addresses that
// the parameter holds. POOL: the kernels' template arguments.

#define main run_main
#include "run.cpp"
#undef main

extern "C" int attention_pool(int number, int threads, int blocks, int shared_bytes, const void* parameter, int bytes) {
    if (bytes != sizeof(Problem)) return 1;
    Problem problem;
    std::memcpy(&problem, parameter, sizeof problem);
    Request request{};
    request.threads = threads;
    request.resident = 1;
    request.blocks[number] = blocks;
    request.shared_bytes[number] = shared_bytes;
    launch(request, problem, attention_pool_block<POOL>, number);
    return 0;
}
