//go:build tools

// Package peer names both helms in one module: they share what they are made of, which halves the time to build them.
package peer

import (
	_ "helm.sh/helm/v3/cmd/helm"
	_ "helm.sh/helm/v4/cmd/helm"
)
