// The bench's control: connection 2k is copied to connection 2k+1, and back, with nothing but io.Copy.
package main

import (
	"fmt"
	"io"
	"log"
	"net"
	"os"
)

func forward(to, from net.Conn) {
	io.Copy(to, from)
	to.(*net.TCPConn).CloseWrite()
}

func accept(listener net.Listener) net.Conn {
	conn, err := listener.Accept()
	if err != nil {
		log.Fatal(err)
	}
	if err := conn.(*net.TCPConn).SetNoDelay(true); err != nil {
		log.Fatal(err)
	}
	return conn
}

func main() {
	if len(os.Args) != 2 {
		log.Fatal("usage: control ADDRESS:PORT")
	}
	listener, err := net.Listen("tcp", os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("listening")
	for {
		first := accept(listener)
		second := accept(listener)
		go func() {
			defer first.Close()
			defer second.Close()
			done := make(chan struct{})
			go func() { forward(first, second); close(done) }()
			forward(second, first)
			<-done
		}()
	}
}
