"""gRPC adapters: messages to values, errors to status codes, no rules."""
