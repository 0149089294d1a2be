#!/bin/sh
# dpkg: remove, upgrade or deconfigure; rpm: 0 for the last removal, else an upgrade.
set -e
case "$1" in
remove | 0) /opt/apparate/dist/share/libexec/deactivate ;;
esac
