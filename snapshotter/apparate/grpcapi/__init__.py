"""gRPC adapters: messages to values and back, errors to status. No rules live here."""
