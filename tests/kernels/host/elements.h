// The host's primitives that need the kernels' element types: behind the kernels' source.

#pragma once

#include "cuda_shim.h"

inline Unit load16(const void* shared) {
    Unit unit;
    std::memcpy(&unit, shared, 16);
    return unit;
}
inline float to_float(Half x) {
    _Float16 value;
    std::memcpy(&value, &x.bits, 2);
    return static_cast<float>(value);
}
inline float to_float(Bfloat16 x) {
    const std::uint32_t bits = static_cast<std::uint32_t>(x.bits) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

inline void store16(void* to, const Unit& unit) { std::memcpy(to, &unit, 16); }
inline void from_float(float x, Half& y) {
    const auto value = static_cast<_Float16>(x);
    std::memcpy(&y.bits, &value, 2);
}
inline void from_float(float x, Bfloat16& y) {
    std::uint32_t bits;
    std::memcpy(&bits, &x, 4);
    y.bits = static_cast<unsigned short>(x != x ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

template <typename T>
unsigned max_of_halves(unsigned a, unsigned b) {
    unsigned both = 0;
    for (int shift = 0; shift < 32; shift += 16) {
        T larger;
        const T one = {static_cast<unsigned short>(a >> shift)}, other = {static_cast<unsigned short>(b >> shift)};
        from_float(max_or_nan(to_float(one), to_float(other)), larger);
        both |= static_cast<unsigned>(larger.bits) << shift;
    }
    return both;
}
inline unsigned max_or_nan(unsigned a, unsigned b, Half) { return max_of_halves<Half>(a, b); }
inline unsigned max_or_nan(unsigned a, unsigned b, Bfloat16) { return max_of_halves<Bfloat16>(a, b); }
