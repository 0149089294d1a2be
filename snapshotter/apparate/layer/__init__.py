"""A layer that can be read before it is there: index, sparse file, verified fetching, disk budget.

Blocking, thread-safe code without FUSE and without gRPC; the loader serves what this package keeps. The shared structures,
their locks and what a crash leaves of them: docs/layer-store.md.
"""
