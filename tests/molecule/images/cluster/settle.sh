#!/bin/sh
# Links to the programs that are mounted, and a unit for each; what a machine is, the files in its /etc/k8s decide.
set -eu
system=/etc/systemd/system
enable() {
    ln -s "../$1" "$system/multi-user.target.wants/$1"
}
for program in kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy kubectl; do
    ln -s /opt/k8s/hyperkube "/usr/local/bin/$program"
done
for program in containerd containerd-shim-runc-v2 ctr; do
    ln -s "/opt/containerd/$program" "/usr/local/bin/$program"
done
ln -s /opt/etcd/etcd /usr/local/bin/etcd
for program in etcd kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy; do
    type=simple
    case $program in etcd | kube-apiserver) type=notify ;; esac
    sed -e "s/@PROGRAM@/$program/" -e "s/@TYPE@/$type/" -e "/^After=/s/ $program.service//" /mnt/program.service >"$system/$program.service"
    enable "$program.service"
done
enable node-setup.service
enable containerd.service
chmod 755 /usr/local/sbin/runc /usr/local/sbin/node-setup /usr/local/sbin/node-images
mkdir -p /etc/k8s /etc/cni/net.d /etc/containerd /opt/k8s /opt/containerd /opt/etcd /opt/runc /opt/cni/bin /var/lib/node
