#!/bin/sh
# dpkg: configure [former version]; rpm: 1 for a first installation, 2 for an upgrade. Starts nothing.
set -e
case "$1" in
abort-*) exit 0 ;;
esac
if { [ "$1" = configure ] && [ -z "$2" ]; } || [ "$1" = 1 ]; then
    if command -v systemctl >/dev/null; then
        systemctl preset apparate-loader.service apparate-snapshotter.service || true # an administrator's policy may refuse
    fi
fi
# rpm has not yet taken away what only the former version had: posttrans goes on.
if [ "$1" = configure ]; then
    /opt/apparate/dist/share/libexec/activate --restart
fi
