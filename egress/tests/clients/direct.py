"""Sockets of a program that knows nothing of proxies: names are resolved, TLS is spoken with whoever answers.

direct.py HOST PORT   prints a line for each: what was done, and the status or the error that it met.
"""

import socket
import ssl
import sys

HOST, PORT = sys.argv[1], int(sys.argv[2])
CONTEXT = ssl.create_default_context()


def ask(name, host, path="/v1/echo", family=socket.AF_UNSPEC):
    """The status of an answer to a request for `host`, by TLS for `name`, at the address of HOST."""
    address = socket.getaddrinfo(HOST, PORT, family, socket.SOCK_STREAM)[0][4]
    with socket.create_connection(address[:2]) as plain, CONTEXT.wrap_socket(plain, server_hostname=name) as stream:
        stream.sendall(f"GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: stream.recv(65536), b"")).decode()
    head = answer.partition("\r\n\r\n")[0].lower()
    denied = next((line.split(": ")[1] for line in head.splitlines() if line.startswith("x-bottlecap-denied")), "")
    return f"{answer.split()[1]} {denied}".strip()


def attempt(what, function, *arguments, **named):
    try:
        print(what, function(*arguments, **named), flush=True)
    except OSError as error:
        print(what, type(error).__name__, flush=True)


attempt("allowed", ask, HOST, f"{HOST}:{PORT}")
attempt("ipv4", ask, HOST, f"{HOST}:{PORT}", family=socket.AF_INET)
attempt("ipv6", ask, HOST, f"{HOST}:{PORT}", family=socket.AF_INET6)
attempt("path", ask, HOST, f"{HOST}:{PORT}", path="/secret")
attempt("lying name", ask, "evil.test", f"evil.test:{PORT}")
attempt("lying host", ask, HOST, f"evil.test:{PORT}")
attempt("unknown name", socket.getaddrinfo, "evil.test", PORT)
attempt("address", socket.create_connection, ("198.51.100.7", PORT))
attempt("other port", socket.create_connection, (socket.gethostbyname(HOST), 9))
