# What this host is, one `name=value` a line. Any shell since 2009, no Python, nothing is changed.
if [ -r /etc/os-release ]; then . /etc/os-release; fi
echo "os_id=${ID:-unknown}"
echo "os_version=${VERSION_ID:-}"
echo "os_like=${ID_LIKE:-}"
echo "arch=$(uname -m)"
echo "kernel=$(uname -r)"
if command -v apt-get >/dev/null 2>&1; then echo packager=apt; elif command -v yum >/dev/null 2>&1; then echo packager=yum; else echo packager=none; fi
if [ -d /run/systemd/system ]; then echo systemd=yes; else echo systemd=no; fi
if grep -qw fuse /proc/filesystems || modinfo fuse >/dev/null 2>&1; then echo fuse=yes; else echo fuse=no; fi
if [ -c /dev/fuse ]; then echo fuse_device=yes; else echo fuse_device=no; fi
containerd=$(command -v containerd 2>/dev/null || true)
echo "containerd_path=$containerd"
if [ -n "$containerd" ]; then
    echo "containerd_version=$("$containerd" --version 2>/dev/null | sed -n 's/.* v\{0,1\}\([0-9][0-9]*\.[0-9][0-9]*\.[0-9][0-9]*\).*/\1/p' | head -n 1)"
fi
for python in /usr/bin/python3 /usr/local/bin/python3 /usr/bin/python3.8 /usr/bin/python3.9; do
    if [ -x "$python" ] && "$python" -c 'import sys; sys.exit(sys.version_info < (3, 8))' >/dev/null 2>&1; then
        echo "python=$python"
        break
    fi
done
if [ -x /opt/apparate/current/bin/python3 ]; then echo own_python=/opt/apparate/current/bin/python3; fi
echo "own_version=$(readlink /opt/apparate/current 2>/dev/null || true)"
echo "own_origin=$(cat /var/lib/apparate-roles/apparate.origin 2>/dev/null || true)"
free() { df -Pm "$1" 2>/dev/null | awk 'NR == 2 {print $4}'; }
echo "free_mb=$(free /var/lib)"
if [ -d /opt/apparate ]; then echo "opt_free_mb=$(free /opt/apparate)"; elif [ -d /opt ]; then echo "opt_free_mb=$(free /opt)"; else echo "opt_free_mb=$(free /)"; fi
# A play that was stopped after it had installed containerd: the configuration is still the package's.
if ls /var/lib/apparate-roles/containerd* >/dev/null 2>&1 && ! grep -q 'Written once by the role containerd' /etc/containerd/config.toml 2>/dev/null; then
    echo containerd_unfinished=yes
fi
