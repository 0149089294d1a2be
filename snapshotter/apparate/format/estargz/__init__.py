"""eStargz: a tar.gz of many gzip members with a table of contents at its end (docs/formats/estargz.md)."""
