package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
)

// ready is the line that serve prints, and DIR/ready.json holds, once the API server answers.
type ready struct {
	Server     string `json:"server"`
	CA         string `json:"ca"`
	Kubeconfig string `json:"kubeconfig"`
	Etcd       string `json:"etcd"`
}

const startLimit = 120 * time.Second // 6 s on an idle machine; this is for a busy one

func serve(arguments []string) {
	set := flag.NewFlagSet("serve", flag.ExitOnError)
	dir := set.String("dir", "", "where the cluster is kept")
	address := set.String("address", "127.0.0.1", "IP address that the API server listens on")
	port := set.Int("port", 6443, "its port")
	must(set.Parse(arguments))
	ip := net.ParseIP(*address)
	if *dir == "" || ip == nil {
		fail("serve needs --dir, and an IP address in --address")
	}
	must(os.MkdirAll(*dir, 0o700))
	announcement := filepath.Join(*dir, "ready.json")
	if err := os.Remove(announcement); err != nil && !errors.Is(err, os.ErrNotExist) {
		fail("%v", err)
	}
	server := "https://" + net.JoinHostPort(*address, strconv.Itoa(*port))
	f := credentials(*dir, ip, server)
	etcd, etcdURL := startEtcd(filepath.Join(*dir, "etcd"))
	is := ready{Server: server, CA: f.ca, Kubeconfig: f.kubeconfig, Etcd: etcdURL}

	apiserver := app.NewAPIServerCommand()
	apiserver.SetArgs(append([]string{
		"--etcd-servers=" + etcdURL,
		"--bind-address=" + *address, "--advertise-address=" + *address, "--secure-port=" + strconv.Itoa(*port),
		"--tls-cert-file=" + f.serverCert, "--tls-private-key-file=" + f.serverKey, "--client-ca-file=" + f.ca,
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-signing-key-file=" + f.accountKey, "--service-account-key-file=" + f.accountPublicKey,
		"--service-cluster-ip-range=10.96.0.0/24",
		"--authorization-mode=Node,RBAC", "--anonymous-auth=false",
		"--allow-privileged=true", // as in every cluster with a CNI of its own
		"--endpoint-reconciler-type=none", "--profiling=false",
	}, set.Args()...))

	var once sync.Once
	stop := func(status int) {
		once.Do(func() {
			etcd.Server.HardStop()
			os.Exit(status)
		})
	}
	signals := make(chan os.Signal, 2) // kube-apiserver hears them too
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		<-signals
		time.Sleep(500 * time.Millisecond) // for it to end its watches
		stop(0)
	}()
	go func() {
		if err := untilReady(f, server); err != nil {
			fmt.Fprintln(os.Stderr, "cluster:", err)
			stop(1)
		}
		line, err := json.Marshal(is)
		must(err)
		must(os.WriteFile(announcement, line, 0o600))
		fmt.Println(string(line))
	}()
	if err := apiserver.Execute(); err != nil {
		fmt.Fprintln(os.Stderr, "kube-apiserver:", err)
		stop(1)
	}
	stop(0)
}

func startEtcd(dir string) (*embed.Etcd, string) {
	config := embed.NewConfig()
	config.Dir, config.LogLevel = dir, "error"
	config.UnsafeNoFsync = true // a test's data needn't survive the machine's crash
	client, peer := freeLoopbackURL(), freeLoopbackURL()
	config.ListenClientUrls, config.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	config.ListenPeerUrls, config.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
	config.InitialCluster = config.InitialClusterFromName(config.Name)
	etcd, err := embed.StartEtcd(config)
	must(err)
	select {
	case <-etcd.Server.ReadyNotify():
	case err := <-etcd.Err():
		fail("etcd: %v", err)
	case <-time.After(startLimit):
		fail("etcd isn't ready after %s", startLimit)
	}
	return etcd, client.String()
}

func freeLoopbackURL() url.URL {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(err)
	defer func() { must(listener.Close()) }()
	return url.URL{Scheme: "http", Host: listener.Addr().String()}
}

// untilReady waits until the API server says that it is, and has made the namespaces that every cluster has.
func untilReady(f files, server string) error {
	pem, err := os.ReadFile(f.ca)
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	admin, err := tls.LoadX509KeyPair(f.adminCert, f.adminKey)
	if err != nil {
		return err
	}
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{admin}}}}
	answers := func(path string) error {
		response, err := client.Get(server + path)
		if err != nil {
			return err
		}
		defer response.Body.Close()
		if response.StatusCode != http.StatusOK {
			return fmt.Errorf("%s: %s", path, response.Status)
		}
		return nil
	}
	for end := time.Now().Add(startLimit); ; time.Sleep(50 * time.Millisecond) {
		err := errors.Join(answers("/readyz"), answers("/api/v1/namespaces/default"))
		if err == nil {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("API server not ready after %s: %s", startLimit, strings.ReplaceAll(err.Error(), "\n", ", "))
		}
	}
}

func compact(arguments []string) {
	set := flag.NewFlagSet("compact", flag.ExitOnError)
	dir := set.String("dir", "", "the running cluster's")
	must(set.Parse(arguments))
	line, err := os.ReadFile(filepath.Join(*dir, "ready.json"))
	must(err)
	var is ready
	must(json.Unmarshal(line, &is))
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{is.Etcd}, DialTimeout: 5 * time.Second})
	must(err)
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	// kube-apiserver watches this key, and drops what its watch cache has from before.
	const key = "compact_rev_key"
	now, err := client.Get(ctx, key)
	must(err)
	_, err = client.Compact(ctx, now.Header.Revision, clientv3.WithCompactPhysical())
	must(err)
	_, err = client.Put(ctx, key, strconv.FormatInt(now.Header.Revision, 10))
	must(err)
	fmt.Println(now.Header.Revision)
}
