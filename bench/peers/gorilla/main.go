// Peer: gorilla/websocket in the classic chat design: one hub goroutine with a map of clients, two pumps per client, a
// buffered channel of 256 messages each, and a writePump that drains what waits into one message, separated by newlines.
// A client whose channel is full is thrown out, as in the original. Write buffers hold 64 KiB and come from a pool, so that
// a drained burst leaves in one system call (with the original's 1 KiB it would be a fragment and a call per KiB).
//
// Install: apt-get update && apt-get install -y golang golang-github-gorilla-websocket-dev
// Build:   GO111MODULE=off GOPATH=/usr/share/gocode go build -o gorilla-hub main.go
// Start:   ./gorilla-hub --port 0 [--sndbuf bytes]
//
// A text that begins with {"type" is a command (login, direct, join, publish, broadcast); every other one is broadcast
// as it is. A text frame may carry several messages: a client must split it at newlines.
package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"sync"
	"syscall"
	"time"

	"github.com/gorilla/websocket"
)

const (
	writeWait      = 10 * time.Second
	pongWait       = 60 * time.Second
	pingPeriod     = (pongWait * 9) / 10
	maxMessageSize = 1 << 20
	sendMessages   = 256
)

var (
	newline       = []byte{'\n'}
	commandPrefix = []byte(`{"type"`)
	upgrader      = websocket.Upgrader{
		ReadBufferSize: 1024,
		CheckOrigin:    func(*http.Request) bool { return true },
	}
)

type command struct {
	Type    string          `json:"type"`
	ID      json.RawMessage `json:"id,omitempty"`
	User    string          `json:"user,omitempty"`
	To      string          `json:"to,omitempty"`
	Channel string          `json:"channel,omitempty"`
	From    string          `json:"from,omitempty"`
	Data    json.RawMessage `json:"data,omitempty"`
}

type client struct {
	hub  *hub
	conn *websocket.Conn
	send chan []byte
	user string
}

// What a read pump asks of the hub; the hub alone touches the maps.
type request struct {
	from *client
	command
}

type hub struct {
	clients    map[*client]bool
	users      map[string]*client
	channels   map[string]map[*client]bool
	broadcast  chan []byte
	requests   chan request
	register   chan *client
	unregister chan *client
}

func newHub() *hub {
	return &hub{
		clients:    make(map[*client]bool),
		users:      make(map[string]*client),
		channels:   make(map[string]map[*client]bool),
		broadcast:  make(chan []byte),
		requests:   make(chan request),
		register:   make(chan *client),
		unregister: make(chan *client),
	}
}

func (h *hub) run() {
	for {
		select {
		case c := <-h.register:
			h.clients[c] = true
		case c := <-h.unregister:
			h.remove(c)
		case message := <-h.broadcast:
			h.sendAll(h.clients, message)
		case r := <-h.requests:
			if h.clients[r.from] {
				h.obey(r)
			}
		}
	}
}

func (h *hub) remove(c *client) {
	if !h.clients[c] {
		return
	}
	delete(h.clients, c)
	if h.users[c.user] == c {
		delete(h.users, c.user)
	}
	for _, members := range h.channels {
		delete(members, c)
	}
	close(c.send)
}

func (h *hub) sendOne(c *client, message []byte) {
	select {
	case c.send <- message:
	default:
		h.remove(c)
	}
}

func (h *hub) sendAll(receivers map[*client]bool, message []byte) {
	for c := range receivers {
		h.sendOne(c, message)
	}
}

func (h *hub) obey(r request) {
	switch r.Type {
	case "login":
		r.from.user = r.User
		h.users[r.User] = r.from
		h.sendOne(r.from, []byte(`{"type":"welcome"}`))
		return
	case "direct":
		if receiver, ok := h.users[r.To]; ok {
			h.sendOne(receiver, push("direct", r))
		}
	case "broadcast":
		h.sendAll(h.clients, push("broadcast", r))
	case "join":
		if h.channels[r.Channel] == nil {
			h.channels[r.Channel] = make(map[*client]bool)
		}
		h.channels[r.Channel][r.from] = true
	case "publish":
		h.sendAll(h.channels[r.Channel], push("publication", r))
	}
	if r.ID != nil && h.clients[r.from] {
		reply, _ := json.Marshal(command{Type: "ok", ID: r.ID})
		h.sendOne(r.from, reply)
	}
}

func push(kind string, r request) []byte {
	message, _ := json.Marshal(command{Type: kind, Channel: r.Channel, From: r.from.user, Data: r.Data})
	return message
}

func (c *client) readPump() {
	defer func() {
		c.hub.unregister <- c
		c.conn.Close()
	}()
	c.conn.SetReadLimit(maxMessageSize)
	c.conn.SetReadDeadline(time.Now().Add(pongWait))
	c.conn.SetPongHandler(func(string) error { c.conn.SetReadDeadline(time.Now().Add(pongWait)); return nil })
	for {
		_, message, err := c.conn.ReadMessage()
		if err != nil {
			return
		}
		if !bytes.HasPrefix(message, commandPrefix) {
			c.hub.broadcast <- message
			continue
		}
		r := request{from: c}
		if json.Unmarshal(message, &r.command) != nil {
			return
		}
		c.hub.requests <- r
	}
}

func (c *client) writePump() {
	ticker := time.NewTicker(pingPeriod)
	defer func() {
		ticker.Stop()
		c.conn.Close()
	}()
	for {
		select {
		case message, ok := <-c.send:
			c.conn.SetWriteDeadline(time.Now().Add(writeWait))
			if !ok {
				c.conn.WriteMessage(websocket.CloseMessage, []byte{})
				return
			}
			w, err := c.conn.NextWriter(websocket.TextMessage)
			if err != nil {
				return
			}
			w.Write(message)
			for n := len(c.send); n > 0; n-- {
				more, open := <-c.send
				if !open {
					break
				}
				w.Write(newline)
				w.Write(more)
			}
			if w.Close() != nil {
				return
			}
		case <-ticker.C:
			c.conn.SetWriteDeadline(time.Now().Add(writeWait))
			if c.conn.WriteMessage(websocket.PingMessage, nil) != nil {
				return
			}
		}
	}
}

func serve(h *hub, w http.ResponseWriter, r *http.Request) {
	conn, err := upgrader.Upgrade(w, r, nil)
	if err != nil {
		return
	}
	c := &client{hub: h, conn: conn, send: make(chan []byte, sendMessages)}
	h.register <- c
	go c.writePump()
	go c.readPump()
}

// Linux copies the listening socket's SO_SNDBUF to every accepted one.
func listen(port, sndbuf int) (net.Listener, error) {
	listener, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil || sndbuf == 0 {
		return listener, err
	}
	raw, err := listener.(*net.TCPListener).SyscallConn()
	if err != nil {
		return nil, err
	}
	err = raw.Control(func(fd uintptr) {
		syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_SNDBUF, sndbuf)
	})
	return listener, err
}

func main() {
	port := flag.Int("port", 0, "port to listen on, 0: the kernel chooses")
	sndbuf := flag.Int("sndbuf", 0, "SO_SNDBUF in bytes, 0: the kernel's default")
	writeBuffer := flag.Int("write-buffer", 1024, "bytes of a connection's write buffer: 1024 in gorilla's chat example")
	flag.Parse()
	upgrader.WriteBufferSize = *writeBuffer
	if *writeBuffer > 4096 {
		upgrader.WriteBufferPool = &sync.Pool{}
	}
	h := newHub()
	go h.run()
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { serve(h, w, r) })
	listener, err := listen(*port, *sndbuf)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("listening", listener.Addr().(*net.TCPAddr).Port)
	log.Fatal(http.Serve(listener, nil))
}
