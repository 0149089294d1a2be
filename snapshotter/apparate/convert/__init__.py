"""Image conversion as a library."""
