"""A Kubernetes API server, as far as we talk to one: plain requests and watches, JSON in and out, no generated client."""
