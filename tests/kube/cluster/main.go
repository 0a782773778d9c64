// Command cluster is a Kubernetes control plane for tests in one program: an embedded etcd, the real
// kube-apiserver, and kubectl.
//
//	cluster serve --dir DIR --address 127.0.0.1 --port 6443 [-- flags of kube-apiserver]
//	cluster kubectl ARGS...
//	cluster compact --dir DIR
//
// serve prints one line of JSON when the API server answers. Everything it keeps is in DIR; a second start on it is
// a restart of the same cluster. compact makes etcd forget all old revisions, whereupon a watch or a list that continues from one of them
// is answered 410 Gone.
package main

import (
	"fmt"
	"os"

	"k8s.io/component-base/cli"
	kubectl "k8s.io/kubectl/pkg/cmd"
)

func main() {
	if len(os.Args) < 2 {
		fail("usage: cluster serve|kubectl|compact ...")
	}
	switch os.Args[1] {
	case "serve":
		serve(os.Args[2:])
	case "kubectl":
		os.Args = os.Args[1:]
		if err := cli.RunNoErrOutput(kubectl.NewDefaultKubectlCommand()); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	case "compact":
		compact(os.Args[2:])
	default:
		fail("no such command: %s", os.Args[1])
	}
}

func must(err error) {
	if err != nil {
		fail("%v", err)
	}
}

func fail(format string, values ...any) {
	fmt.Fprintf(os.Stderr, "cluster: "+format+"\n", values...)
	os.Exit(1)
}
