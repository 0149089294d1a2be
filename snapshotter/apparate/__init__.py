"""On-demand loading of container images: accelerated images, the node's loader and its snapshotter."""

__version__ = "1.0.0"
