package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// files are what a cluster's processes and clients read.
type files struct {
	ca, serverCert, serverKey, adminCert, adminKey, accountKey, accountPublicKey, kubeconfig string
}

// credentials makes, or on a restart finds, the CA, the server's certificate for address, the administrator's client
// certificate with a kubeconfig, and the key that signs ServiceAccounts' tokens.
func credentials(dir string, address net.IP, url string) files {
	in := func(name string) string { return filepath.Join(dir, "pki", name) }
	f := files{
		ca: in("ca.crt"), serverCert: in("server.crt"), serverKey: in("server.key"), adminCert: in("admin.crt"),
		adminKey: in("admin.key"), accountKey: in("accounts.key"), accountPublicKey: in("accounts.pub"),
		kubeconfig: filepath.Join(dir, "kubeconfig"),
	}
	if _, err := os.Stat(f.kubeconfig); err == nil { // written last
		return f
	}
	must(os.MkdirAll(filepath.Join(dir, "pki"), 0o700))

	caKey := newKey()
	ca := certificate(1, "test cluster CA")
	ca.IsCA, ca.BasicConstraintsValid, ca.KeyUsage = true, true, x509.KeyUsageCertSign
	ca = sign(f.ca, ca, ca, caKey, caKey)

	server := certificate(2, "kube-apiserver")
	server.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	server.DNSNames = []string{"kubernetes", "kubernetes.default", "kubernetes.default.svc"}
	server.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1), address}
	serverKey := newKey()
	sign(f.serverCert, server, ca, serverKey, caKey)
	writeKey(f.serverKey, serverKey)

	admin := certificate(3, "administrator")
	admin.Subject.Organization = []string{"system:masters"}
	admin.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	adminKey := newKey()
	sign(f.adminCert, admin, ca, adminKey, caKey)
	writeKey(f.adminKey, adminKey)

	accounts := newKey()
	writeKey(f.accountKey, accounts)
	public, err := x509.MarshalPKIXPublicKey(accounts.Public())
	must(err)
	write(f.accountPublicKey, "PUBLIC KEY", public)

	writeKubeconfig(f, url)
	return f
}

func certificate(serial int64, name string) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name}, KeyUsage: x509.KeyUsageDigitalSignature,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(30 * 24 * time.Hour),
	}
}

func sign(path string, template, parent *x509.Certificate, key, parentKey *ecdsa.PrivateKey) *x509.Certificate {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), parentKey)
	must(err)
	write(path, "CERTIFICATE", der)
	signed, err := x509.ParseCertificate(der)
	must(err)
	return signed
}

func writeKubeconfig(f files, url string) {
	object := func(pairs ...any) map[string]any {
		made := map[string]any{}
		for i := 0; i < len(pairs); i += 2 {
			made[pairs[i].(string)] = pairs[i+1]
		}
		return made
	}
	config, err := json.MarshalIndent(object( // JSON is YAML
		"apiVersion", "v1", "kind", "Config", "current-context", "admin",
		"clusters", []any{object("name", "test", "cluster", object("server", url, "certificate-authority", f.ca))},
		"users", []any{object("name", "admin",
			"user", object("client-certificate", f.adminCert, "client-key", f.adminKey))},
		"contexts", []any{object("name", "admin", "context", object("cluster", "test", "user", "admin"))},
	), "", "  ")
	must(err)
	must(os.WriteFile(f.kubeconfig, append(config, '\n'), 0o600))
}

func newKey() *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	return key
}

func writeKey(path string, key *ecdsa.PrivateKey) {
	der, err := x509.MarshalECPrivateKey(key)
	must(err)
	write(path, "EC PRIVATE KEY", der)
}

func write(path, kind string, der []byte) {
	must(os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
}
