// Takes a VM through its whole life with firecracker-go-sdk, as it is published.
//
// The environment says with what: KERNEL, INITRD, DISK, OTHER_DISK and TAP, and DIRECTORY for sockets and logs. The program
// `firecracker` is found in PATH. Ends with exit code 0 if everything went as it has to.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	firecracker "github.com/firecracker-microvm/firecracker-go-sdk"
	"github.com/firecracker-microvm/firecracker-go-sdk/client/models"
	"github.com/firecracker-microvm/firecracker-go-sdk/client/operations"
	"github.com/firecracker-microvm/firecracker-go-sdk/vsock"
	"github.com/sirupsen/logrus"
)

const (
	echoPort = 5000
	// The SDK gives interfaces numbers.
	interfaceID = "1"
	driveID     = "data"
	patience    = 2 * time.Minute
)

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	defer cancel()
	if err := life(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
	fmt.Println("the VM has lived")
}

func life(ctx context.Context) error {
	directory := os.Getenv("DIRECTORY")
	in := func(name string) string { return filepath.Join(directory, name) }
	config := firecracker.Config{
		SocketPath:      in("api.sock"),
		LogPath:         in("log"),
		LogLevel:        "Info",
		MetricsPath:     in("metrics"),
		KernelImagePath: os.Getenv("KERNEL"),
		InitrdPath:      os.Getenv("INITRD"),
		KernelArgs:      "console=ttyS0 reboot=k panic=1 pci=off",
		Drives: []models.Drive{{
			DriveID:      firecracker.String(driveID),
			PathOnHost:   firecracker.String(os.Getenv("DISK")),
			IsRootDevice: firecracker.Bool(false),
			IsReadOnly:   firecracker.Bool(false),
			CacheType:    firecracker.String(models.DriveCacheTypeUnsafe),
			RateLimiter:  limiter(1<<20, 100),
		}},
		NetworkInterfaces: firecracker.NetworkInterfaces{{
			StaticConfiguration: &firecracker.StaticNetworkConfiguration{
				MacAddress:  "06:00:AC:10:00:02",
				HostDevName: os.Getenv("TAP"),
			},
			InRateLimiter:  limiter(1<<20, 100),
			OutRateLimiter: limiter(1<<20, 100),
		}},
		VsockDevices: []firecracker.VsockDevice{{ID: "vsock", Path: in("vsock"), CID: 3}},
		MachineCfg: models.MachineConfiguration{
			VcpuCount:  firecracker.Int64(1),
			MemSizeMib: firecracker.Int64(256),
			Smt:        firecracker.Bool(false),
		},
		VMID: "go-sdk",
	}
	log := logrus.New()
	log.SetOutput(os.Stderr)
	log.SetLevel(logrus.WarnLevel)
	machine, err := firecracker.NewMachine(ctx, config, firecracker.WithLogger(logrus.NewEntry(log)))
	if err != nil {
		return fmt.Errorf("cannot make the machine: %w", err)
	}
	balloon := firecracker.NewCreateBalloonHandler(0, true, 1)
	machine.Handlers.FcInit = machine.Handlers.FcInit.AppendAfter(firecracker.CreateMachineHandlerName, balloon)
	if err := machine.Start(ctx); err != nil {
		return fmt.Errorf("cannot start: %w", err)
	}
	version, err := machine.GetFirecrackerVersion(ctx)
	if err != nil || version != "1.16.1" {
		return fmt.Errorf("version %q: %w", version, err)
	}
	for _, step := range []struct {
		name string
		run  func(context.Context, *firecracker.Machine) error
	}{
		{"state", func(ctx context.Context, machine *firecracker.Machine) error { return state(ctx, machine, "Running") }},
		{"echo", echo},
		{"limits", limits},
		{"exchange of a drive", exchange},
		{"pause and resume", pause},
		{"balloon", inflate},
		{"echo after the pause", echo},
		{"metrics", metrics},
	} {
		if err := step.run(ctx, machine); err != nil {
			return errors.Join(fmt.Errorf("%s: %w", step.name, err), machine.StopVMM())
		}
		fmt.Println(step.name)
	}
	if err := machine.Shutdown(ctx); err != nil {
		return fmt.Errorf("cannot shut down: %w", err)
	}
	return machine.Wait(ctx)
}

func limiter(bytes, operations int64) *models.RateLimiter {
	bucket := func(size int64) models.TokenBucket {
		return firecracker.TokenBucketBuilder{}.
			WithBucketSize(size).WithInitialSize(size).WithRefillDuration(100 * time.Millisecond).Build()
	}
	return firecracker.NewRateLimiter(bucket(bytes), bucket(operations))
}

func state(ctx context.Context, machine *firecracker.Machine, wanted string) error {
	info, err := machine.DescribeInstanceInfo(ctx)
	if err != nil {
		return err
	}
	if *info.State != wanted || *info.ID != "go-sdk" {
		return fmt.Errorf("the VM %q is %q: expected %q", *info.ID, *info.State, wanted)
	}
	return nil
}

// Sends more than the buffers on the way hold, and expects it back.
func echo(ctx context.Context, machine *firecracker.Machine) error {
	path := machine.Cfg.VsockDevices[0].Path
	stream, err := vsock.DialContext(ctx, path, echoPort, vsock.WithRetryTimeout(patience))
	if err != nil {
		return err
	}
	defer stream.Close()
	if err := stream.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	sent := bytes.Repeat([]byte("there and back "), 1<<15)
	failed := make(chan error, 1)
	go func() {
		_, err := stream.Write(sent)
		failed <- err
	}()
	back := make([]byte, len(sent))
	if _, err := io.ReadFull(stream, back); err != nil {
		return err
	}
	if !bytes.Equal(sent, back) {
		return errors.New("other bytes came back")
	}
	return <-failed
}

func limits(ctx context.Context, machine *firecracker.Machine) error {
	set := firecracker.RateLimiterSet{InRateLimiter: limiter(2<<20, 200), OutRateLimiter: limiter(2<<20, 200)}
	if err := machine.UpdateGuestNetworkInterfaceRateLimit(ctx, interfaceID, set); err != nil {
		return err
	}
	return machine.UpdateGuestDrive(ctx, driveID, "", func(params *operations.PatchGuestDriveByIDParams) {
		params.Body.RateLimiter = limiter(4<<20, 400)
	})
}

func exchange(ctx context.Context, machine *firecracker.Machine) error {
	return machine.UpdateGuestDrive(ctx, driveID, os.Getenv("OTHER_DISK"))
}

func pause(ctx context.Context, machine *firecracker.Machine) error {
	if err := machine.PauseVM(ctx); err != nil {
		return err
	}
	if err := state(ctx, machine, "Paused"); err != nil {
		return err
	}
	if err := machine.ResumeVM(ctx); err != nil {
		return err
	}
	return state(ctx, machine, "Running")
}

func inflate(ctx context.Context, machine *firecracker.Machine) error {
	if err := machine.UpdateBalloon(ctx, 16); err != nil {
		return err
	}
	if err := machine.UpdateBalloonStats(ctx, 2); err != nil {
		return err
	}
	config, err := machine.GetBalloonConfig(ctx)
	if err != nil {
		return err
	}
	if *config.AmountMib != 16 || config.StatsPollingIntervals != 2 {
		return fmt.Errorf("the balloon is to have %d MiB", *config.AmountMib)
	}
	for {
		statistics, err := machine.GetBalloonStats(ctx)
		if err != nil {
			return err
		}
		if *statistics.ActualMib == 16 && statistics.FreeMemory > 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the balloon has %d MiB: %w", *statistics.ActualMib, ctx.Err())
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func metrics(ctx context.Context, machine *firecracker.Machine) error {
	client := firecracker.NewClient(machine.Cfg.SocketPath, machine.Logger(), false)
	flush := models.InstanceActionInfo{ActionType: firecracker.String(models.InstanceActionInfoActionTypeFlushMetrics)}
	if _, err := client.CreateSyncAction(ctx, &flush); err != nil {
		return err
	}
	written, err := os.ReadFile(machine.Cfg.MetricsPath)
	if err != nil {
		return err
	}
	if !strings.Contains(string(written), `"patch_api_requests"`) {
		return fmt.Errorf("metrics are %q", written)
	}
	exported, err := client.GetExportVMConfig()
	if err != nil {
		return err
	}
	if len(exported.Payload.Drives) != 1 || *exported.Payload.Drives[0].RateLimiter.Ops.Size != 400 {
		return fmt.Errorf("the configuration has the drives %v", exported.Payload.Drives)
	}
	return nil
}
