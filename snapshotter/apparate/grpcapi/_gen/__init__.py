"""Generated from grpcapi/proto by `python -m apparate.grpcapi.generate`; not edited by hand."""
