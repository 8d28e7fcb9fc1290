"""Measurements behind the figures that mmds publishes. Each runs from a checkout, and prints machine and versions.

=====================================  ==============================================================================
``python -m benchmarks``               mmds beside every library that is installed: writing, reading, loading, memory
``python -m benchmarks.reading``       opening 10**9 samples; one sample; a batch against a plain copy in memory
``python -m benchmarks.memory.workers``  memory of 0 to 8 DataLoader workers: an mmds file against a list of dicts
``python -m benchmarks.conversion``    ``mmds convert`` of an image folder against ``cp -r`` of it
``python -m benchmarks.stores``        the same samples in mmds, HDF5, LMDB, Zarr, TileDB, Arrow, Parquet, ``.npy``
``python -m benchmarks.transport``     DataLoader epochs against transport alone, and against `mmds.Loader`
``python -m benchmarks.images``        JPEGs to cropped batches: threads against Pillow and DataLoader workers
``python -m benchmarks.scaling``       a batch at 10**4 to 10**8 samples; time to the first batch
``python -m benchmarks.scale``         1 TB, 100 TB and 10**10 samples, in folders of shards and in object storage
``python -m benchmarks.remote``        later epochs through a cache of shards against local files; downloads
``python -m benchmarks.shuffle``       how well each order shuffles, and what it costs
=====================================  ==============================================================================

Rules: data are seeded; contenders take turns, so that a slow minute of the machine hits all of them, and medians are
compared; every byte is touched; the state of the page cache is said; ratios come before absolute figures, which only
mean something on the machine they were taken on. ``--quick`` (or a small size) shows that a benchmark works, in seconds.
"""
