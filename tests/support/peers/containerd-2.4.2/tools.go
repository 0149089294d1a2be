//go:build tools

// Package peer names the programs of containerd, so that go.mod and go.sum fix all that they are built from.
package peer

import (
	_ "github.com/containerd/containerd/v2/cmd/containerd"
	_ "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2"
	_ "github.com/containerd/containerd/v2/cmd/ctr"
)
