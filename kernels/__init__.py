"""Attention outside of the graph.

The attention pool: `attention_pool.cu` is the CUDA kernel, `attention_pool` its launcher, `weights` what it needs of a
model, `plan` how it is spread over a device, `check` its shapes and tolerance.

In-block attention: `block_attention.cu`, `block_attention` with weights and plan, `block_check`.

Of both: `reference` holds the float64 formulas that all else is checked against, `primitives.cuh` what the kernels
share, `source` their text, `resources` and `machine_code` what the compilers make of them.
"""

if __name__ != "mpmmu_rt.kernels":
    raise ImportError("import it as mpmmu_rt.kernels")
