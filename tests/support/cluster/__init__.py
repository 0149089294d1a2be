"""A real Kubernetes on this machine: nodes are podman containers with systemd, containerd and kubelet of their own.

python -m tests.support.cluster up      # the developer's cluster, with everything installed
python -m tests.support.cluster down
"""
