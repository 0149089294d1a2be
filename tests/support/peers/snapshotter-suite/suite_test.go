// Package suite runs containerd's own snapshotter suite against a snapshotter that serves on a unix socket.
package suite

import (
	"context"
	"os"
	"testing"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/core/snapshots/testsuite"
	"github.com/containerd/containerd/v2/pkg/dialer"
	"github.com/containerd/containerd/v2/pkg/testutil"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// The suite adapts its Rename test to overlayfs when it is told that it tests the snapshotter of this name.
const suiteName = "overlayfs"

func TestSnapshotter(t *testing.T) {
	testutil.RequiresRoot(t)
	socket := os.Getenv("SNAPSHOTTER_SOCKET")
	if socket == "" {
		t.Fatal("SNAPSHOTTER_SOCKET is not set")
	}
	testsuite.SnapshotterSuite(t, suiteName, func(ctx context.Context, root string) (snapshots.Snapshotter, func() error, error) {
		connection, err := grpc.NewClient(
			dialer.DialAddress(socket),
			grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithContextDialer(dialer.ContextDialer),
		)
		if err != nil {
			return nil, nil, err
		}
		return proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(connection), "apparate"), connection.Close, nil
	})
}
