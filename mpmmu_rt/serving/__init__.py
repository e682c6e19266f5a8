"""Serving by Triton: what its model repository holds, what its Python backend runs, and how its server is started.

    repository   writes the model repository of a bundle: configurations, the bundle, a few lines of `model.py`
    native       … for a host without this package: the bundle's graphs as an ensemble of Triton's onnxruntime backend
    models       what those lines run: pixels, or encoded files, to probability
    answers      one batch of several requests, each answered or refused on its own; knows nothing of Triton
    server       finds the server in PyTriton's wheel, starts it, and has it answer what it accepted before it ends

There is no server, no scheduler and no protocol of our own.
"""
