module github.com/containerd/containerd

go 1.15

replace github.com/beorn7/perks => github.com/beorn7/perks v1.0.1

replace github.com/BurntSushi/toml => github.com/BurntSushi/toml v0.3.1

replace github.com/cespare/xxhash/v2 => github.com/cespare/xxhash/v2 v2.1.1

replace github.com/containerd/btrfs => github.com/containerd/btrfs v0.0.0-20201111183144-404b9149801e

replace github.com/containerd/cgroups => github.com/containerd/cgroups v0.0.0-20200710171044-318312a37340

replace github.com/containerd/console => github.com/containerd/console v1.0.0

replace github.com/containerd/continuity => github.com/containerd/continuity v0.0.0-20200710164510-efbc4488d8fe

replace github.com/containerd/fifo => github.com/containerd/fifo v0.0.0-20200410184934-f15a3290365b

replace github.com/containerd/go-runc => github.com/containerd/go-runc v0.0.0-20200220073739-7016d3ce2328

replace github.com/containerd/ttrpc => github.com/containerd/ttrpc v1.0.1

replace github.com/containerd/typeurl => github.com/containerd/typeurl v1.0.1

replace github.com/coreos/go-systemd/v22 => github.com/coreos/go-systemd/v22 v22.1.0

replace github.com/cpuguy83/go-md2man/v2 => github.com/cpuguy83/go-md2man/v2 v2.0.0

replace github.com/docker/go-events => github.com/docker/go-events v0.0.0-20190806004212-e31b211e4f1c

replace github.com/docker/go-metrics => github.com/docker/go-metrics v0.0.1

replace github.com/docker/go-units => github.com/docker/go-units v0.4.0

replace github.com/godbus/dbus/v5 => github.com/godbus/dbus/v5 v5.0.3

replace github.com/gogo/googleapis => github.com/gogo/googleapis v1.3.2

replace github.com/gogo/protobuf => github.com/gogo/protobuf v1.3.1

replace github.com/golang/protobuf => github.com/golang/protobuf v1.3.5

replace github.com/google/go-cmp => github.com/google/go-cmp v0.2.0

replace github.com/google/uuid => github.com/google/uuid v1.1.1

replace github.com/grpc-ecosystem/go-grpc-prometheus => github.com/grpc-ecosystem/go-grpc-prometheus v1.2.0

replace github.com/hashicorp/errwrap => github.com/hashicorp/errwrap v1.0.0

replace github.com/hashicorp/go-multierror => github.com/hashicorp/go-multierror v1.0.0

replace github.com/hashicorp/golang-lru => github.com/hashicorp/golang-lru v0.5.3

replace github.com/imdario/mergo => github.com/imdario/mergo v0.3.7

replace github.com/konsorten/go-windows-terminal-sequences => github.com/konsorten/go-windows-terminal-sequences v1.0.3

replace github.com/matttproud/golang_protobuf_extensions => github.com/matttproud/golang_protobuf_extensions v1.0.1

replace github.com/Microsoft/go-winio => github.com/Microsoft/go-winio v0.4.14

replace github.com/Microsoft/hcsshim => github.com/Microsoft/hcsshim v0.8.10

replace github.com/opencontainers/go-digest => github.com/opencontainers/go-digest v1.0.0

replace github.com/opencontainers/image-spec => github.com/opencontainers/image-spec v1.0.1

replace github.com/opencontainers/runc => github.com/opencontainers/runc v1.0.0-rc92

replace github.com/opencontainers/runtime-spec => github.com/opencontainers/runtime-spec v1.0.3-0.20200728170252-4d89ac9fbff6

replace github.com/pkg/errors => github.com/pkg/errors v0.9.1

replace github.com/prometheus/client_golang => github.com/prometheus/client_golang v1.6.0

replace github.com/prometheus/client_model => github.com/prometheus/client_model v0.2.0

replace github.com/prometheus/common => github.com/prometheus/common v0.9.1

replace github.com/prometheus/procfs => github.com/prometheus/procfs v0.0.11

replace github.com/russross/blackfriday/v2 => github.com/russross/blackfriday/v2 v2.0.1

replace github.com/shurcooL/sanitized_anchor_name => github.com/shurcooL/sanitized_anchor_name v1.0.0

replace github.com/sirupsen/logrus => github.com/sirupsen/logrus v1.6.0

replace github.com/syndtr/gocapability => github.com/syndtr/gocapability v0.0.0-20180916011248-d98352740cb2

replace github.com/urfave/cli => github.com/urfave/cli v1.22.1

replace go.etcd.io/bbolt => go.etcd.io/bbolt v1.3.5

replace go.opencensus.io => go.opencensus.io v0.22.0

replace golang.org/x/net => golang.org/x/net v0.0.0-20200707034311-ab3426394381

replace golang.org/x/sync => golang.org/x/sync v0.0.0-20181108010431-42b317875d0f

replace golang.org/x/sys => golang.org/x/sys v0.0.0-20200622214017-ed371f2e16b4

replace golang.org/x/text => golang.org/x/text v0.3.3

replace google.golang.org/genproto => google.golang.org/genproto v0.0.0-20200224152610-e50cd9704f63

replace google.golang.org/grpc => google.golang.org/grpc v1.27.1

replace gotest.tools/v3 => gotest.tools/v3 v3.0.2

replace github.com/cilium/ebpf => github.com/cilium/ebpf v0.0.0-20200702112145-1c8d4c9ef775

replace github.com/containerd/cri => github.com/containerd/cri v1.19.1-0.20201126003523-adc0b6a578ed

replace github.com/davecgh/go-spew => github.com/davecgh/go-spew v1.1.1

replace github.com/docker/docker => github.com/docker/docker v17.12.0-ce-rc1.0.20200310163718-4634ce647cf2+incompatible

replace github.com/docker/spdystream => github.com/docker/spdystream v0.0.0-20160310174837-449fdfce4d96

replace github.com/emicklei/go-restful => github.com/emicklei/go-restful v2.9.5+incompatible

replace github.com/go-logr/logr => github.com/go-logr/logr v0.2.0

replace github.com/google/gofuzz => github.com/google/gofuzz v1.1.0

replace github.com/json-iterator/go => github.com/json-iterator/go v1.1.10

replace github.com/modern-go/concurrent => github.com/modern-go/concurrent v0.0.0-20180306012644-bacd9c7ef1dd

replace github.com/modern-go/reflect2 => github.com/modern-go/reflect2 v1.0.2

replace github.com/opencontainers/selinux => github.com/opencontainers/selinux v1.6.0

replace github.com/tchap/go-patricia => github.com/tchap/go-patricia v2.2.6+incompatible

replace github.com/willf/bitset => github.com/willf/bitset v1.1.11

replace golang.org/x/crypto => golang.org/x/crypto v0.0.0-20200622213623-75b288015ac9

replace golang.org/x/oauth2 => golang.org/x/oauth2 v0.0.0-20191202225959-858c2ad4c8b6

replace golang.org/x/time => golang.org/x/time v0.0.0-20191024005414-555d28b269f0

replace gopkg.in/inf.v0 => gopkg.in/inf.v0 v0.9.1

replace gopkg.in/yaml.v2 => gopkg.in/yaml.v2 v2.2.8

replace k8s.io/api => k8s.io/api v0.19.4

replace k8s.io/apimachinery => k8s.io/apimachinery v0.19.4

replace k8s.io/apiserver => k8s.io/apiserver v0.19.4

replace k8s.io/client-go => k8s.io/client-go v0.19.4

replace k8s.io/cri-api => k8s.io/cri-api v0.19.4

replace k8s.io/klog/v2 => k8s.io/klog/v2 v2.2.0

replace k8s.io/utils => k8s.io/utils v0.0.0-20200729134348-d5654de09c73

replace sigs.k8s.io/structured-merge-diff/v4 => sigs.k8s.io/structured-merge-diff/v4 v4.0.1

replace sigs.k8s.io/yaml => sigs.k8s.io/yaml v1.2.0

replace github.com/containerd/go-cni => github.com/containerd/go-cni v1.0.1

replace github.com/containernetworking/cni => github.com/containernetworking/cni v0.8.0

replace github.com/containernetworking/plugins => github.com/containernetworking/plugins v0.8.6

replace github.com/fsnotify/fsnotify => github.com/fsnotify/fsnotify v1.4.9

replace github.com/containerd/imgcrypt => github.com/containerd/imgcrypt v1.0.1

replace github.com/containers/ocicrypt => github.com/containers/ocicrypt v1.0.1

replace github.com/fullsailor/pkcs7 => github.com/fullsailor/pkcs7 v0.0.0-20180613152042-8306686428a5

replace gopkg.in/square/go-jose.v2 => gopkg.in/square/go-jose.v2 v2.3.1

replace github.com/containerd/zfs => github.com/containerd/zfs v0.0.0-20191030014035-9abf673ca6ff

replace github.com/mistifyio/go-zfs => github.com/mistifyio/go-zfs v2.1.2-0.20190413222219-f784269be439+incompatible

replace github.com/containerd/aufs => github.com/containerd/aufs v0.0.0-20191030083217-371312c1e31c

require (
	github.com/BurntSushi/toml v0.3.1
	github.com/Microsoft/go-winio v0.4.17-0.20210211115548-6eac466e5fa3
	github.com/Microsoft/hcsshim v0.8.14
	github.com/Microsoft/hcsshim/test v0.0.0-20210227013316-43a75bb4edd3
	github.com/containerd/aufs v0.0.0-20200908144142-dab0cbea06f4
	github.com/containerd/btrfs v0.0.0-20201111183144-404b9149801e
	github.com/containerd/cgroups v0.0.0-20200824123100-0b889c03f102
	github.com/containerd/console v1.0.1
	github.com/containerd/continuity v0.0.0-20201208142359-180525291bb7
	github.com/containerd/cri v0.0.0-00010101000000-000000000000
	github.com/containerd/fifo v0.0.0-20201026212402-0724c46b320c
	github.com/containerd/go-runc v0.0.0-20200220073739-7016d3ce2328
	github.com/containerd/ttrpc v1.0.2
	github.com/containerd/typeurl v1.0.1
	github.com/containerd/zfs v0.0.0-20200918131355-0a33824f23a2
	github.com/coreos/go-systemd/v22 v22.1.0
	github.com/docker/docker v0.0.0-00010101000000-000000000000 // indirect
	github.com/docker/go-events v0.0.0-20190806004212-e31b211e4f1c
	github.com/docker/go-metrics v0.0.1
	github.com/docker/go-units v0.4.0
	github.com/gogo/googleapis v1.4.0
	github.com/gogo/protobuf v1.3.2
	github.com/google/go-cmp v0.5.2
	github.com/google/uuid v1.1.2
	github.com/grpc-ecosystem/go-grpc-prometheus v1.2.0
	github.com/hashicorp/go-multierror v1.0.0
	github.com/imdario/mergo v0.3.10
	github.com/mistifyio/go-zfs v0.0.0-00010101000000-000000000000 // indirect
	github.com/opencontainers/go-digest v1.0.0
	github.com/opencontainers/image-spec v1.0.1
	github.com/opencontainers/runc v1.0.0-rc93
	github.com/opencontainers/runtime-spec v1.0.3-0.20200929063507-e6143ca7d51d
	github.com/opencontainers/selinux v1.8.0
	github.com/pkg/errors v0.9.1
	github.com/prometheus/client_golang v1.7.1
	github.com/sirupsen/logrus v1.7.0
	github.com/syndtr/gocapability v0.0.0-20200815063812-42c35b437635
	github.com/urfave/cli v1.22.2
	go.etcd.io/bbolt v1.3.5
	golang.org/x/net v0.0.0-20201224014010-6772e930b67b
	golang.org/x/sync v0.0.0-20201020160332-67f06af15bc9
	golang.org/x/sys v0.0.0-20201202213521-69691e467435
	google.golang.org/grpc v1.30.0
	gotest.tools/v3 v3.0.2
)
