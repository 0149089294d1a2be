"""Builds the host package: one directory that runs on any x86_64 Linux with nothing of the host but its kernel.

docs/packaging.md says what is in it and why. `python -m hostpackage --help` says how to run it.
"""
