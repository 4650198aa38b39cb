# Serves a directory over TLS through `git http-backend`; says each request, and whether its credential was right.
import base64, http.server, os, ssl, subprocess, sys
root, certificate, token = sys.argv[1:4]
wanted = 'Basic ' + base64.b64encode(('x-access-token:' + token).encode()).decode()
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.0'
    def log_message(self, *a): pass
    def serve(self):
        right = self.headers.get('Authorization') == wanted
        print(self.command, self.path, right, flush=True)
        if self.path.startswith('/elsewhere'):
            self.send_response(302); self.send_header('Location', '/web.git' + self.path[10:]); self.send_header('Content-Length', '0'); self.end_headers(); return
        if not right:
            self.send_response(401); self.send_header('WWW-Authenticate', 'Basic realm="git"'); self.send_header('Content-Length', '0'); self.end_headers(); return
        path, _, query = self.path.partition('?')
        body = self.rfile.read(int(self.headers.get('Content-Length') or 0))
        env = dict(PATH=os.environ['PATH'], GIT_PROJECT_ROOT=root, GIT_HTTP_EXPORT_ALL='1', PATH_INFO=path, QUERY_STRING=query,
            REQUEST_METHOD=self.command, REMOTE_USER='x', REMOTE_ADDR='127.0.0.1', CONTENT_TYPE=self.headers.get('Content-Type') or '',
            HTTP_CONTENT_ENCODING=self.headers.get('Content-Encoding') or '', GIT_PROTOCOL=self.headers.get('Git-Protocol') or '',
            GIT_CONFIG_COUNT='2', GIT_CONFIG_KEY_0='http.receivepack', GIT_CONFIG_VALUE_0='true',
            GIT_CONFIG_KEY_1='safe.directory', GIT_CONFIG_VALUE_1='*')
        if self.headers.get('Transfer-Encoding') == 'chunked':
            body = b''
            while True:
                size = int(self.rfile.readline(), 16)
                body += self.rfile.read(size); self.rfile.readline()
                if size == 0: break
        out = subprocess.run(['git', 'http-backend'], input=body, env=env, stdout=subprocess.PIPE).stdout
        head, _, rest = out.partition(b'\r\n\r\n')
        lines = [line.split(': ', 1) for line in head.decode().split('\r\n')]
        status = [int(value.split()[0]) for name, value in lines if name == 'Status']
        self.send_response(status[0] if status else 200)
        for name, value in lines:
            if name not in ('Status', 'Content-Length'): self.send_header(name, value)
        self.send_header('Content-Length', str(len(rest)))
        self.end_headers(); self.wfile.write(rest)
    do_GET = do_POST = serve
server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER); context.load_cert_chain(certificate)
server.socket = context.wrap_socket(server.socket, server_side=True)
print(server.server_address[1], flush=True)
server.serve_forever()
