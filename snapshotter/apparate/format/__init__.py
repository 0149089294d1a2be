"""Bytes <-> structures of layers and images: sans-I/O, each module says which bytes it needs and never reads them."""
