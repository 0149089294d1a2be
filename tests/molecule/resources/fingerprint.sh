# A node in lines: files with mode, owner and digest, units, packages, mounts. What merely lives (logs, caches) is left out.
export LC_ALL=C
for folder in /etc /usr/lib/systemd /usr/local /opt /var/lib/apparate /var/lib/apparate-roles /run/apparate /var/cache/apparate; do
    [ -e "$folder" ] || continue
    find "$folder" \( -path /etc/ld.so.cache -o -path /etc/machine-id -o -path '/etc/*-' -o -path /etc/.updated \) -prune -o -printf '%y %m %U %G %p %l\n'
    find "$folder" \( -path /etc/ld.so.cache -o -path /etc/machine-id -o -path '/etc/*-' -o -path /etc/.updated \) -prune -o -type f -exec sha256sum {} +
done | sort
for package in fuse fuse3 libfuse3-3 containerd.io runc apparate; do
    if command -v dpkg-query >/dev/null; then
        dpkg-query --show --showformat='package ${Package} ${Version} ${db:Status-Status}\n' "$package" 2>/dev/null
    else
        rpm --query --queryformat 'package %{NAME} %{VERSION}\n' "$package" 2>/dev/null | grep '^package [^ ]* [0-9]'
    fi
done
systemctl list-unit-files --no-legend --no-pager | awk '{print "unit", $1, $2}' | sort
awk '{print "mount", $5}' /proc/self/mountinfo | grep -v '/run/containerd' | sort
exit 0
