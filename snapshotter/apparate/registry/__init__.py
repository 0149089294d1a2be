"""Client of the OCI distribution API: blocking, thread-safe, bounded by the caller's deadline (docs/registry.md)."""
