"""A blocking, thread-safe client of the OCI distribution protocol."""
