#!/bin/sh
# dpkg: remove, purge, upgrade or abort-*; rpm: 0 for the last removal, else an upgrade.
# Layers and snapshots stay: containerd may still use them. `apparate node restore` and the playbook remove.yml know.
set -e
case "$1" in
remove | 0)
    rm -rf /opt/apparate
    if [ -d /run/systemd/system ]; then
        systemctl daemon-reload
        systemctl reset-failed apparate-loader.service apparate-snapshotter.service 2>/dev/null || true # they had not failed
    fi
    ;;
purge)
    rm -rf /etc/apparate
    ;;
esac
