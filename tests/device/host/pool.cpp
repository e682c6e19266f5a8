// The attention pool's kernels as a function of the host: one launch of tests/kernels/host/run.cpp, on the addresses that
// the parameter holds. POOL: the kernels' template arguments.

#define main run_main
#include "run.cpp"
#undef main

extern "C" int attention_pool(int number, int threads, int blocks, int shared_bytes, const void* parameter, int bytes) {
    if (bytes != sizeof(Problem)) return 1;
    Problem problem;
    std::memcpy(&problem, parameter, sizeof problem);
    launch(blocks, threads, shared_bytes, 1, [&] { attention_pool_block<POOL>(problem, number); });
    return 0;
}
