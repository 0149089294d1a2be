"""EROFS, the uncompressed subset: structures, a writer of metadata images, a reader (docs/formats/erofs.md)."""
