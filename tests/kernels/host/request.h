// What the tests send to a host build: a request of its own kind, the kernels' parameter, and buffers.

#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>

struct Buffer {
    std::int64_t field, bytes, output;  // where in the parameter its address belongs; its size; whether it is sent back
};

inline void read(void* to, std::size_t bytes) {
    if (std::fread(to, 1, bytes, stdin) != bytes) {
        std::fprintf(stderr, "the request is too short\n");
        std::exit(2);
    }
}

// `count` buffers, each of the exact size, for AddressSanitizer; their addresses go into `parameter`.
inline std::vector<std::pair<Buffer, unsigned char*>> read_buffers(int count, void* parameter) {
    std::vector<std::pair<Buffer, unsigned char*>> buffers;
    for (int i = 0; i < count; ++i) {
        Buffer buffer;
        read(&buffer, sizeof buffer);
        auto* data = static_cast<unsigned char*>(std::malloc(buffer.bytes));
        read(data, buffer.bytes);
        std::memcpy(static_cast<unsigned char*>(parameter) + buffer.field, &data, sizeof data);
        buffers.emplace_back(buffer, data);
    }
    return buffers;
}

// Those that are sent back, to stdout.
inline void write_buffers(const std::vector<std::pair<Buffer, unsigned char*>>& buffers) {
    for (const auto& [buffer, data] : buffers) {
        if (buffer.output) std::fwrite(data, 1, buffer.bytes, stdout);
        std::free(data);
    }
}

inline void require_size(std::size_t here, int there) {
    if (static_cast<std::size_t>(there) == here) return;
    std::fprintf(stderr, "the parameter has %zu bytes here and %d in Python\n", here, there);
    std::exit(2);
}
