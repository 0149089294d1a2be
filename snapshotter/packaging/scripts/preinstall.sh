#!/bin/sh
# dpkg alone. The package does not list /opt, which no other lists: dpkg would take an empty one away with the package.
mkdir -p /opt
