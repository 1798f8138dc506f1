// The original: an echo server on Go's gaio, reading into the connection's own buffer and, as its README advises,
// reading again only when the write of that buffer is over.
//
//	go_gaio LIFE BUFFER_SIZE    prints {"port": N} and serves until killed or until LIFE seconds are over
//
// On one processor GOMAXPROCS is 1 by itself: the runtime counts the processors this process may run on.
package main

import (
	"fmt"
	"log"
	"net"
	"os"
	"strconv"
	"time"

	"github.com/xtaci/gaio"
)

func number(argument int) int {
	if len(os.Args) != 3 {
		log.Fatal("usage: go_gaio LIFE BUFFER_SIZE")
	}
	value, err := strconv.Atoi(os.Args[argument])
	if err != nil {
		log.Fatal(err)
	}
	return value
}

func echo(watcher *gaio.Watcher) {
	for {
		results, err := watcher.WaitIO()
		if err != nil {
			log.Fatal(err)
		}
		for _, result := range results {
			switch {
			case result.Error != nil:
				watcher.Free(result.Conn)
			case result.Operation == gaio.OpRead:
				watcher.Write(nil, result.Conn, result.Buffer[:result.Size])
			case result.Operation == gaio.OpWrite:
				watcher.Read(nil, result.Conn, result.Buffer[:cap(result.Buffer)])
			}
		}
	}
}

func main() {
	life, bufferSize := number(1), number(2)
	time.AfterFunc(time.Duration(life)*time.Second, func() { os.Exit(0) })
	watcher, err := gaio.NewWatcher()
	if err != nil {
		log.Fatal(err)
	}
	go echo(watcher)
	listener, err := net.Listen("tcp", "127.0.0.1:0") // net.Conn has TCP_NODELAY set unasked
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("{\"port\": %d}\n", listener.Addr().(*net.TCPAddr).Port)
	for {
		connection, err := listener.Accept()
		if err != nil {
			log.Fatal(err)
		}
		if err := watcher.Read(nil, connection, make([]byte, bufferSize)); err != nil {
			log.Fatal(err)
		}
	}
}
