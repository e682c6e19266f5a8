"""Attention pooling outside the graph: the formulas in float64 that everything else is checked against."""

if __name__ != "mpmmu_rt.kernels":
    raise ImportError("import it as mpmmu_rt.kernels")
