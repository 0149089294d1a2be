// Command containers-image copies an image within registries that speak plain HTTP, with every layer compressed anew, by
// the library with which podman, buildah and skopeo push:
//
//	containers-image FORMAT SOURCE TARGET
//
// FORMAT is gzip, zstd or zstd:chunked.
package main

import (
	"context"
	"fmt"
	"os"

	imgspecv1 "github.com/opencontainers/image-spec/specs-go/v1"
	"go.podman.io/image/v5/copy"
	"go.podman.io/image/v5/docker"
	"go.podman.io/image/v5/pkg/compression"
	"go.podman.io/image/v5/signature"
	"go.podman.io/image/v5/types"
)

func run(format, source, target string) error {
	algorithm, err := compression.AlgorithmByName(format)
	if err != nil {
		return err
	}
	from, err := docker.ParseReference("//" + source)
	if err != nil {
		return err
	}
	to, err := docker.ParseReference("//" + target)
	if err != nil {
		return err
	}
	policy, err := signature.NewPolicyContext(&signature.Policy{Default: []signature.PolicyRequirement{signature.NewPRInsecureAcceptAnything()}})
	if err != nil {
		return err
	}
	cache, err := os.MkdirTemp("", "containers-image-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(cache)
	system := func() *types.SystemContext {
		return &types.SystemContext{DockerInsecureSkipTLSVerify: types.OptionalBoolTrue, BlobInfoCacheDir: cache}
	}
	destination := system()
	destination.CompressionFormat = &algorithm
	_, err = copy.Image(context.Background(), policy, to, from, &copy.Options{
		SourceCtx:              system(),
		DestinationCtx:         destination,
		ForceManifestMIMEType:  imgspecv1.MediaTypeImageManifest,
		ForceCompressionFormat: true,
	})
	return err
}

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: containers-image FORMAT SOURCE TARGET")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2], os.Args[3]); err != nil {
		fmt.Fprintln(os.Stderr, "containers-image:", err)
		os.Exit(1)
	}
}
