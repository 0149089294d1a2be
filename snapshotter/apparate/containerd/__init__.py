"""The container daemon of a node, as its clients see it: values and the protocol by which it is asked."""
