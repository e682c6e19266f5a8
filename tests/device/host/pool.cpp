// The attention pool's kernel as a function of the host: the launch of tests/kernels/host/run.cpp, on the addresses that
// the parameter holds. POOL: the kernel's template arguments.

#define main run_main
#include "run.cpp"
#undef main

extern "C" int attention_pool(int element, int channels_last, int exchange, int samples, int threads, int blocks,
                              int shared_bytes, int resident, const void* parameter, int bytes) {
    if (bytes != sizeof(Problem)) return 1;
    Problem problem;
    std::memcpy(&problem, parameter, sizeof problem);
    const Request request{element, channels_last, exchange, samples, threads, blocks, shared_bytes, resident, 1, 0, 0, 0,
                          bytes};
    launch(request, problem, attention_pool_block<POOL>);
    return 0;
}
