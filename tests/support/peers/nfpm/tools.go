//go:build tools

// Package peer names the program, so that go.mod and go.sum fix all that it is built from.
package peer

import _ "github.com/goreleaser/nfpm/v2/cmd/nfpm"
