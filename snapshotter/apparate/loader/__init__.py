"""The data-path process: FUSE, mounts and the control API behind it."""
