#!/bin/sh
# Make a Debian root file system one that boots in a container and leaves its machine alone.
set -eu
# udev works on the machine's disks; sysctl, binfmt and modules-load change the machine; the mounts are the machine's.
for unit in systemd-udevd.service systemd-udevd-control.socket systemd-udevd-kernel.socket systemd-udev-trigger.service \
    systemd-sysctl.service systemd-binfmt.service systemd-modules-load.service \
    dev-hugepages.mount sys-kernel-debug.mount sys-kernel-tracing.mount proc-sys-fs-binfmt_misc.automount \
    getty.target console-getty.service getty@tty1.service systemd-logind.service systemd-networkd-wait-online.service; do
    ln -sf /dev/null "/etc/systemd/system/$unit"
done
mkdir -p /etc/systemd/system/multi-user.target.wants
ln -sf ../test-registry.service /etc/systemd/system/multi-user.target.wants/test-registry.service
: >/etc/machine-id
rm -f /var/lib/dbus/machine-id
mkdir -p /var/log/journal
