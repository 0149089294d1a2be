// Command estargz-convert converts an image in a containerd's store with the estargz library's own converter:
//
//	estargz-convert [-format estargz|zstdchunked] [-prioritized FILE] ADDRESS NAMESPACE SOURCE TARGET
//
// FILE lists, one path a line, the files that belong in front of each layer.
package main

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"os"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images/converter"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/platforms"
	"github.com/containerd/stargz-snapshotter/estargz"
	nativeestargz "github.com/containerd/stargz-snapshotter/nativeconverter/estargz"
	"github.com/containerd/stargz-snapshotter/nativeconverter/zstdchunked"
)

func prioritized(path string) ([]estargz.Option, error) {
	if path == "" {
		return nil, nil
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	var paths, missing []string
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		paths = append(paths, lines.Text())
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	return []estargz.Option{estargz.WithPrioritizedFiles(paths), estargz.WithAllowPrioritizeNotFound(&missing)}, nil
}

func run(format, list string, arguments []string) error {
	options, err := prioritized(list)
	if err != nil {
		return err
	}
	client, err := containerd.New(arguments[0])
	if err != nil {
		return err
	}
	defer client.Close()
	convert := nativeestargz.LayerConvertFunc(options...)
	if format == "zstdchunked" {
		convert = zstdchunked.LayerConvertFunc(options...)
	}
	ctx := namespaces.WithNamespace(context.Background(), arguments[1])
	_, err = converter.Convert(ctx, client, arguments[3], arguments[2],
		converter.WithLayerConvertFunc(convert),
		converter.WithDockerToOCI(true),
		converter.WithPlatform(platforms.DefaultStrict()))
	return err
}

func main() {
	format := flag.String("format", "estargz", "estargz or zstdchunked")
	list := flag.String("prioritized", "", "file with paths, one a line")
	flag.Parse()
	if flag.NArg() != 4 {
		flag.Usage()
		os.Exit(2)
	}
	if err := run(*format, *list, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "estargz-convert:", err)
		os.Exit(1)
	}
}
