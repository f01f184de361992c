// leanswarm is a load generator like agentswarm that leaves most of the processor to the server.
//
// agentswarm speaks through grpc-go, which takes about as much CPU a message as the gateway
// itself: on a small machine it is full before the gateway is. Here every agent has a TLS
// connection and an HTTP/2 stream of its own, too, but its DATA frames are written by a few
// goroutines that go round all agents, one write a message. Frames are made and read with
// golang.org/x/net/http2; headers, flow control and half-close are as grpc-go does them.
//
// Each agent sends a heartbeat, then at fixed times a batch of its own: the time and each record's
// number are put in, then it is compressed. In the end it half-closes and waits for the status.
// Only loopback; the load ends by itself.
package main

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/golang/snappy"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

const (
	maxFrame = 16384          // bytes of a DATA frame; the server does not allow more
	window   = 65535          // bytes that either side may send ahead, until told otherwise
	streamID = 1              // of the call; each connection has one
	seqMark  = "000000000000" // stands where a record's number goes
	dialTime = 30 * time.Second
	endTime  = 30 * time.Second
)

func uvarint(b []byte, v uint64) []byte { return binary.AppendUvarint(b, v) }

func field(b []byte, number int, value []byte) []byte {
	b = uvarint(b, uint64(number<<3|2))
	return append(uvarint(b, uint64(len(value))), value...)
}

func item(pairs ...string) []byte {
	var b []byte
	for i := 0; i+1 < len(pairs); i += 2 {
		b = field(b, 1, field(field(nil, 1, []byte(pairs[i])), 2, []byte(pairs[i+1])))
	}
	return b
}

func record(dataType int, now int64, body []byte) []byte {
	b := uvarint([]byte{1 << 3}, uint64(dataType))
	b = uvarint(append(b, 2<<3), uint64(now))
	return field(b, 3, body)
}

// process is the body of an execve record, about as long as real ones: 650 bytes.
func process(number int) []byte {
	argv := make([]byte, 200)
	state := uint32(number)*2654435761 + 1
	for i := range argv {
		state = state*1664525 + 1013904223
		argv[i] = "abcdefghijklmnopqrstuvwxyz0123456789-_./ "[(state>>24)%41]
	}
	pid := fmt.Sprint(1000 + number)
	return item("seq", seqMark, "pid", pid, "ppid", "1", "pgid", pid, "uid", "0", "exe", "/usr/bin/bash",
		"comm", "bash", "nodename", "prod-web-17", "sessionid", "4294967295", "pns", "4026531836",
		"root_pns", "4026531836", "argv", string(argv), "pid_tree", "1000.bash<900.sshd<1.systemd",
		"tty", "pts0", "stdin", "/dev/pts/0", "stdout", "/dev/pts/0", "dip", "-1", "dport", "-1",
		"sip", "-1", "sport", "-1", "sa_family", "-1", "socket_pid", "-1", "ssh", "-1",
		"ld_preload", "-1", "username", "root")
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// message appends the gRPC message of one batch, compressed with snappy's framing format.
func message(out, plain, room []byte) []byte {
	start := len(out)
	out = append(out, 1, 0, 0, 0, 0)
	out = append(out, "\xff\x06\x00\x00sNaPpY"...)
	for len(plain) > 0 {
		part := plain[:min(len(plain), 65536)]
		plain = plain[len(part):]
		kind, payload := byte(0), snappy.Encode(room, part)
		if len(payload) >= len(part)-len(part)/8 {
			kind, payload = 1, part
		}
		size := len(payload) + 4
		out = append(out, kind, byte(size), byte(size>>8), byte(size>>16))
		crc := crc32.Checksum(part, castagnoli)
		out = binary.LittleEndian.AppendUint32(out, (crc>>15|crc<<17)+0xa282ead8)
		out = append(out, payload...)
	}
	binary.BigEndian.PutUint32(out[start+1:], uint32(len(out)-start-5))
	return out
}

type counts struct {
	connected, sent, confirmed, failed, endedEarly, unconfirmed, commands atomic.Int64
}

type agent struct {
	id     string
	tail   []byte // fields of a batch that tell of the host
	conn   *tls.Conn
	framer *http2.Framer // its reading half; writing goes through write, under the lock
	lock   sync.Mutex
	// Bytes that the server takes, on the connection and on the stream.
	connWindow, streamWindow int64
	initial                  int64
	opened                   *sync.Cond
	over                     bool // the connection is gone, or the call has its status
	ending                   bool // we have half-closed
	status                   string
	done                     chan struct{}
	records, sequence        int64
	buffer                   []byte
}

func frame(out []byte, kind http2.FrameType, flags http2.Flags, stream uint32, size int) []byte {
	out = append(out, byte(size>>16), byte(size>>8), byte(size), byte(kind), byte(flags))
	return binary.BigEndian.AppendUint32(out, stream)
}

func (a *agent) write(data []byte) error {
	a.lock.Lock()
	defer a.lock.Unlock()
	_, err := a.conn.Write(data)
	return err
}

// send writes one message in as many DATA frames as it needs, within the server's windows.
func (a *agent) send(message []byte) error {
	a.lock.Lock()
	defer a.lock.Unlock()
	for len(message) > 0 {
		part := message[:min(len(message), maxFrame)]
		for !a.over && min(a.connWindow, a.streamWindow) < int64(len(part)) {
			a.opened.Wait()
		}
		if a.over {
			return errors.New("the call is over")
		}
		a.connWindow -= int64(len(part))
		a.streamWindow -= int64(len(part))
		a.buffer = append(frame(a.buffer[:0], http2.FrameData, 0, streamID, len(part)), part...)
		if _, err := a.conn.Write(a.buffer); err != nil {
			return err
		}
		message = message[len(part):]
	}
	return nil
}

func (a *agent) connect(addr string, config *tls.Config) error {
	dialer := tls.Dialer{NetDialer: &net.Dialer{Timeout: dialTime}, Config: config}
	raw, err := dialer.Dial("tcp", addr)
	if err != nil {
		return err
	}
	a.conn = raw.(*tls.Conn)
	if a.conn.ConnectionState().NegotiatedProtocol != "h2" {
		return errors.New("no HTTP/2")
	}
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	for _, each := range [][2]string{
		{":method", "POST"}, {":scheme", "https"}, {":path", "/grpc.Transfer/Transfer"},
		{":authority", config.ServerName}, {"content-type", "application/grpc"},
		{"user-agent", "leanswarm"}, {"te", "trailers"}, {"grpc-encoding", "snappy"},
	} {
		encoder.WriteField(hpack.HeaderField{Name: each[0], Value: each[1]})
	}
	out := append([]byte(http2.ClientPreface), frame(nil, http2.FrameSettings, 0, 0, 0)...)
	out = append(frame(out, http2.FrameHeaders, http2.FlagHeadersEndHeaders, streamID, block.Len()),
		block.Bytes()...)
	a.connWindow, a.streamWindow, a.initial = window, window, window
	a.opened = sync.NewCond(&a.lock)
	a.done = make(chan struct{})
	a.framer = http2.NewFramer(io.Discard, a.conn)
	a.framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	return a.write(out)
}

// read acts on what the server sends, until the call has its status or the connection is gone.
func (a *agent) read(tell *counts) {
	defer func() {
		a.lock.Lock()
		a.over = true
		a.opened.Broadcast()
		a.lock.Unlock()
		close(a.done)
	}()
	for {
		got, err := a.framer.ReadFrame()
		if err != nil {
			return
		}
		switch got := got.(type) {
		case *http2.WindowUpdateFrame:
			a.lock.Lock()
			if got.StreamID == 0 {
				a.connWindow += int64(got.Increment)
			} else {
				a.streamWindow += int64(got.Increment)
			}
			a.opened.Broadcast()
			a.lock.Unlock()
		case *http2.SettingsFrame:
			if got.IsAck() {
				continue
			}
			if value, ok := got.Value(http2.SettingInitialWindowSize); ok {
				a.lock.Lock()
				a.streamWindow += int64(value) - a.initial
				a.initial = int64(value)
				a.opened.Broadcast()
				a.lock.Unlock()
			}
			a.write(frame(nil, http2.FrameSettings, http2.FlagSettingsAck, 0, 0))
		case *http2.PingFrame:
			if !got.IsAck() {
				a.write(append(frame(nil, http2.FramePing, http2.FlagPingAck, 0, 8), got.Data[:]...))
			}
		case *http2.DataFrame: // a part of a Command: its window is given back at once
			tell.commands.Add(1)
			if size := uint32(got.Length); size > 0 {
				both := binary.BigEndian.AppendUint32(frame(nil, http2.FrameWindowUpdate, 0, 0, 4), size)
				both = frame(both, http2.FrameWindowUpdate, 0, streamID, 4)
				a.write(binary.BigEndian.AppendUint32(both, size))
			}
		case *http2.MetaHeadersFrame:
			if got.StreamEnded() {
				for _, each := range got.Fields {
					if each.Name == "grpc-status" {
						a.status = each.Value
					}
				}
				return
			}
		case *http2.RSTStreamFrame, *http2.GoAwayFrame:
			return
		}
	}
}

func (a *agent) sendBatch(records [][]byte) error {
	var plain []byte
	for _, each := range records {
		plain = field(plain, 1, each)
	}
	err := a.send(message(nil, append(plain, a.tail...), nil))
	if err == nil {
		a.records += int64(len(records))
	}
	return err
}

func (a *agent) heartbeat() error {
	now := time.Now().Unix()
	return a.sendBatch([][]byte{record(1000, now, item("kernel_version", "6.1.0", "platform",
		"debian", "cpu", "0.01", "rss", "20000000", "nproc", "4", "state", "running", "version",
		"1.7.0.26", "host_model", "x", "host_vendor", "x", "boot_time", "1700000000",
		"start_time", "1700000001"))})
}

// half closes the agent's side of the call, and waits for the status.
func (a *agent) half(tell *counts) {
	a.write(frame(nil, http2.FrameData, http2.FlagDataEndStream, streamID, 0))
	select {
	case <-a.done:
		if a.status == "0" {
			tell.confirmed.Add(a.records)
		} else {
			tell.endedEarly.Add(1)
		}
	case <-time.After(endTime):
		tell.unconfirmed.Add(1)
	}
	a.conn.Close()
}

// plan makes the batches of one worker's agents.
type plan struct {
	bodies [][]byte
	size   int
	second int64
	shared [][]byte // per body: its record, with tag and length, of the current second
	marks  []int    // per body: where its number goes
}

// batch gives the records of one batch, numbered, followed by what tells of the host.
func (p *plan) batch(a *agent, index int, out []byte) []byte {
	now := time.Now().Unix()
	if now != p.second {
		p.second = now
		p.shared, p.marks = p.shared[:0], p.marks[:0]
		for _, body := range p.bodies {
			framed := field(nil, 1, record(59, now, body))
			p.shared = append(p.shared, framed)
			p.marks = append(p.marks, bytes.Index(framed, []byte(seqMark)))
		}
	}
	for i := 0; i < p.size; i++ {
		which := (index + i) % len(p.bodies)
		start := len(out)
		out = append(out, p.shared[which]...)
		place := out[start+p.marks[which]:][:len(seqMark)]
		for digit, rest := len(place)-1, a.sequence; digit >= 0; digit-- {
			place[digit] = byte('0' + rest%10)
			rest /= 10
		}
		a.sequence++
	}
	return append(out, a.tail...)
}

func main() {
	addr := flag.String("addr", "127.0.0.1:6751", "AgentCenter gRPC address (loopback)")
	dir := flag.String("certs", ".", "folder with ca.crt client.crt client.key")
	name := flag.String("server-name", "elkeid.com", "TLS server name")
	agents := flag.Int("agents", 10, "agents")
	size := flag.Int("records", 10, "records a batch")
	total := flag.Int("total", 200000, "records in all; 0: none, hold the connections")
	every := flag.Duration("every", time.Second, "pause between an agent's batches (0: as fast as the gateway accepts)")
	beat := flag.Duration("beat", 0, "pause between an agent's heartbeats (0: one at the start)")
	hold := flag.Duration("hold", 0, "hold the connections this long after sending")
	dials := flag.Int("dial", 32, "dials at once")
	workers := flag.Int("workers", 2, "goroutines that send")
	flag.Parse()
	fail := func(what any) {
		fmt.Fprintln(os.Stderr, "leanswarm:", what)
		os.Exit(2)
	}
	if host, _, err := net.SplitHostPort(*addr); err != nil || !net.ParseIP(host).IsLoopback() {
		fail("-addr must be a loopback address")
	}
	if *agents < 1 || *size < 1 || *every < 0 || *workers < 1 {
		fail("-agents, -records and -workers must be above 0, -every not below")
	}
	certificate, err := tls.LoadX509KeyPair(*dir+"/client.crt", *dir+"/client.key")
	if err != nil {
		fail(err)
	}
	authority, err := os.ReadFile(*dir + "/ca.crt")
	if err != nil {
		fail(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(authority)
	config := &tls.Config{Certificates: []tls.Certificate{certificate}, RootCAs: pool,
		ServerName: *name, NextProtos: []string{"h2"}}

	var tell counts
	complain := func(count *atomic.Int64, what any) {
		if count.Add(1) < 4 {
			fmt.Fprintln(os.Stderr, "leanswarm:", what)
		}
	}
	began := time.Now()
	fleet := make([]*agent, *agents)
	var dialing sync.WaitGroup
	slots := make(chan struct{}, *dials)
	for i := range fleet {
		dialing.Add(1)
		slots <- struct{}{}
		go func() {
			defer func() { <-slots; dialing.Done() }()
			a := &agent{id: fmt.Sprintf("%08x-5eed-4000-8000-%012x", i, os.Getpid())}
			tail := field(field(nil, 2, []byte(a.id)), 3, []byte("10.1.2.3"))
			tail = field(field(tail, 7, []byte("host-"+a.id[:8])), 8, []byte("1.7.0.26"))
			a.tail = field(tail, 9, []byte("elkeid-agent"))
			if err := a.connect(*addr, config); err != nil {
				complain(&tell.failed, err)
				return
			}
			go a.read(&tell)
			if err := a.heartbeat(); err != nil {
				complain(&tell.failed, err)
				return
			}
			tell.connected.Add(1)
			fleet[i] = a
		}()
	}
	dialing.Wait()
	connected := time.Now()

	rounds := *total / *agents / *size
	bodies := make([][]byte, 64)
	for i := range bodies {
		bodies[i] = process(i)
	}
	var sending sync.WaitGroup
	for worker := 0; worker < *workers; worker++ {
		sending.Add(1)
		go func() {
			defer sending.Done()
			plan := plan{bodies: bodies, size: *size}
			var plain, out []byte
			room := make([]byte, snappy.MaxEncodedLen(65536))
			for round := 0; round < rounds; round++ {
				for i := worker; i < len(fleet); i += *workers {
					a := fleet[i]
					if a == nil {
						continue
					}
					phase := time.Duration(i) * *every / time.Duration(len(fleet))
					elapsed := time.Duration(round)**every + phase
					if *every > 0 {
						time.Sleep(time.Until(connected.Add(elapsed)))
					}
					plain = plan.batch(a, i+round, plain[:0])
					out = message(out[:0], plain, room)
					err := a.send(out)
					if err == nil {
						a.records += int64(*size)
						// Staggered as the batches are: an agent's own time within the period.
						shift := time.Duration(i) * *beat / time.Duration(len(fleet))
						if *beat > 0 && (elapsed+shift)%*beat < *every {
							err = a.heartbeat()
						}
					}
					if err != nil {
						complain(&tell.failed, err)
						a.conn.Close()
						fleet[i] = nil
					}
				}
			}
		}()
	}
	sending.Wait()
	finished := time.Now()
	time.Sleep(*hold)
	var ending sync.WaitGroup
	for _, a := range fleet {
		if a != nil {
			tell.sent.Add(a.records)
			ending.Add(1)
			go func() { defer ending.Done(); a.half(&tell) }()
		}
	}
	ending.Wait()
	json.NewEncoder(os.Stdout).Encode(map[string]any{"agents": *agents,
		"connected": tell.connected.Load(), "failed": tell.failed.Load(),
		"ended_early": tell.endedEarly.Load(), "unconfirmed": tell.unconfirmed.Load(),
		"reconnects": 0, "connect_s": connected.Sub(began).Seconds(),
		"sent_records": tell.sent.Load(), "confirmed_records": tell.confirmed.Load(),
		"send_s": finished.Sub(connected).Seconds(), "commands_received": tell.commands.Load(),
		"body_bytes": len(bodies[0])})
}
