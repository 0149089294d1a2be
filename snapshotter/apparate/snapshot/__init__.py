"""containerd's snapshot model: metadata, overlay mounts and remote layers. No gRPC, no FUSE."""
