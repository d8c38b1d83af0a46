"""A server with long and late answers and websockets, out of the standard library's smallest parts.

usage: long_server.py unix:PATH VERSION
       long_server.py --modules    (prints the files of the modules it needs)
"""
import _sha1
import binascii
import os
import signal
import socket
import struct
import sys
import threading
import time

# RFC 6455, 1.3.
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
LONG = 20
SILENT = 3


def head_of(stream):
    head = b""
    while b"\r\n\r\n" not in head:
        chunk = stream.recv(4096)
        if not chunk:
            raise ConnectionError
        head += chunk
    return head


def exactly(stream, count):
    data = b""
    while len(data) < count:
        chunk = stream.recv(count - len(data))
        if not chunk:
            raise ConnectionError
        data += chunk
    return data


def echo(stream, head, version):
    fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line)
    key = {name.lower(): value for name, value in fields.items()}[b"sec-websocket-key"]
    accept = binascii.b2a_base64(_sha1.sha1(key + GUID).digest(), newline=False)
    stream.sendall(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
                   b"Connection: Upgrade\r\nSec-WebSocket-Accept: " + accept + b"\r\n\r\n")
    while True:
        kind, length = exactly(stream, 2)
        mask = exactly(stream, 4)
        text = bytes(byte ^ mask[at % 4] for at, byte in enumerate(exactly(stream, length & 127)))
        if kind & 15 == 8:
            stream.sendall(b"\x88\x00")
            return
        answer = version.encode() + b" " + text
        stream.sendall(struct.pack("BB", 0x81, len(answer)) + answer)


def serve(stream, version):
    with stream:
        try:
            head = head_of(stream)
            path = head.split(b" ")[1]
            if path == b"/websocket":
                return echo(stream, head, version)
            if path == b"/silent":
                time.sleep(SILENT)
            stream.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
            if path == b"/head":
                stream.sendall(head)
            if path == b"/long":
                for _ in range(LONG):
                    stream.sendall(b".")
                    time.sleep(1)
            stream.sendall(version.encode())
        except OSError:
            pass


def main():
    if sys.argv[1] == "--modules":
        files = {getattr(module, "__file__", None) for module in sys.modules.values()}
        print("\n".join(sorted(file for file in files if file and file != __file__)))
        return
    path, version = sys.argv[1].removeprefix("unix:"), sys.argv[2]
    listener = socket.socket(socket.AF_UNIX)
    # Of one before it in the same session.
    if os.path.exists(path):
        os.unlink(path)
    listener.bind(path)
    os.chmod(path, 0o660)
    listener.listen(512)
    # No more connections, and the ones there are to their end.
    signal.signal(signal.SIGTERM, lambda *_: listener.shutdown(socket.SHUT_RDWR))
    while True:
        try:
            stream, _ = listener.accept()
        except OSError:
            break
        threading.Thread(target=serve, args=(stream, version)).start()


main()
