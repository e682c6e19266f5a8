"""Millions of pairs on a Ray cluster: the manifest in shards, each of which is a part of the output, written once.

A shard is a few batches of consecutive rows of the manifest. A worker that has predicted one writes its rows under a
temporary name and renames: the part is there or not, and nothing else is remembered. So whatever is killed, a worker,
the driver or a node, the parts that are there stay, and what is missing is made by whoever goes on. The batches are
those of `mpmmu_rt.run`, and so are the rows, to the bit.
"""
