"""The attention pool outside the graph.

`reference` holds the float64 formulas that all else is checked against, `attention_pool.cu` the CUDA kernel,
`attention_pool` its launcher, `weights` what it needs of a model, `plan` how it is spread over a device, `check` its
shapes and tolerance, and `resources` what the compilers say of it.
"""

if __name__ != "mpmmu_rt.kernels":
    raise ImportError("import it as mpmmu_rt.kernels")
