// Command go-containerregistry pushes an image whose layers are eStargz as that library makes them, to a registry that
// speaks plain HTTP (the last version that makes them):
//
//	go-containerregistry TARGET LAYER.tar...
package main

import (
	"fmt"
	"os"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

func run(target string, paths []string) error {
	reference, err := name.ParseReference(target, name.Insecure)
	if err != nil {
		return err
	}
	layers := make([]v1.Layer, 0, len(paths))
	for _, path := range paths {
		layer, err := tarball.LayerFromFile(path, tarball.WithEstargz, tarball.WithMediaType(types.OCILayer))
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		layers = append(layers, layer)
	}
	base := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	image, err := mutate.AppendLayers(base, layers...)
	if err != nil {
		return err
	}
	config, err := image.ConfigFile()
	if err != nil {
		return err
	}
	config.OS, config.Architecture = "linux", "amd64"
	if image, err = mutate.ConfigFile(image, config); err != nil {
		return err
	}
	return remote.Write(reference, image)
}

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "usage: go-containerregistry TARGET LAYER.tar...")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, "go-containerregistry:", err)
		os.Exit(1)
	}
}
