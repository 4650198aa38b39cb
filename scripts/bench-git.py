#!/usr/bin/env python3
"""git-gate beside git daemon with hook scripts and beside direct ssh, all on the loopback, interleaved in one run.

    scripts/bench-git.py PATH/OF/git-gate      # some minutes
    ROUNDS=15 LARGE_MB=300 LARGE_REFS=2000 scripts/bench-git.py PATH/OF/git-gate
    COUNT=1 scripts/bench-git.py PATH/OF/git-gate

Prints a table of medians and ratios; the comparisons of a row took turns. With COUNT=1 it counts instead how many programs git-gate starts for
each request (by strace), which is the same on a busy machine. With --write after the path the table also takes the place of the one in
docs/measurements-git.md."""
import concurrent.futures, datetime, os, pathlib, random, shutil, signal, socket, statistics, subprocess, sys, tempfile, threading, time

if len(sys.argv) < 2 or sys.argv[2:] not in ([], ["--write"]):
    sys.exit(__doc__)
GATE = os.path.abspath(sys.argv[1])
WRITE = sys.argv[2:] == ["--write"]
DOCUMENT = pathlib.Path(__file__).resolve().parent.parent / "docs/measurements-git.md"
ROUNDS = int(os.environ.get("ROUNDS", "5"))
LARGE_MB = int(os.environ.get("LARGE_MB", "30"))
LARGE_REFS = int(os.environ.get("LARGE_REFS", "500"))
root = pathlib.Path(tempfile.mkdtemp(prefix="bench-git-"))
ENV = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "GIT_CONFIG_NOSYSTEM": "1", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
for who in ("AUTHOR", "COMMITTER"):
    ENV[f"GIT_{who}_NAME"], ENV[f"GIT_{who}_EMAIL"] = "Bench", "bench@example.test"
SSH = f"ssh -F /dev/null -i {root}/identity -o UserKnownHostsFile={root}/known -o IdentitiesOnly=yes -o LogLevel=ERROR"
started = []


told = []


def tell(text):
    """A part of what docs/measurements-git.md holds."""
    told.append(text)
    print(text, flush=True)


def head(settings):
    """How the rest came about."""
    build = "debug" if "/debug/" in GATE else "release"
    given = " ".join(f"{name}={value}" for name, value in settings.items())
    tell(f"`{given} scripts/bench-git.py PATH/OF/git-gate` on {datetime.date.today()}, a {build} build, load {os.getloadavg()[0]:.1f} on "
         f"{os.cpu_count()} processors:\n")


def write(section):
    """Puts what was told between the marks of a section."""
    text = DOCUMENT.read_text()
    begin, end = f"<!-- {section} -->\n", f"<!-- end of {section} -->"
    before, rest = text.split(begin, 1)
    DOCUMENT.write_text(before + begin + "\n".join(told).rstrip("\n") + "\n" + end + rest.split(end, 1)[1])


def run(*command, cwd=root, **more):
    env = {**ENV, **more.pop("env", {})}
    done = subprocess.run([str(c) for c in command], cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}: {done.stderr.decode(errors='replace')}")
    return done


def port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start(*command, env=None):
    log = open(root / "log", "ab")
    process = subprocess.Popen([str(c) for c in command], env=env or ENV, stdout=log, stderr=log)
    started.append(process)
    return process


def wait_for(number):
    while True:
        try:
            return socket.create_connection(("127.0.0.1", number), 1).close()
        except OSError:
            time.sleep(0.02)


def make(name, refs, megabytes):
    """A repository of that many branches; its files are random and so cannot be packed well."""
    path = root / f"{name}.git"
    run("git", "init", "-q", "--bare", "-b", "main", path)
    source, chance = [], random.Random(7)
    files = max(1, megabytes)
    for n in range(files):
        source.append(b"blob\nmark :%d\ndata %d\n%s\n" % (n + 1, 1 << 20, chance.randbytes(1 << 20)))
    who = b"Bench <bench@example.test> 1700000000 +0000"
    count = max(refs, 500)
    for n in range(count):
        source.append(b"commit refs/heads/main\nmark :%d\ncommitter %s\ndata 6\nnumber\n" % (files + 1 + n, who))
        if n < files:
            source.append(b"M 100644 :%d file%d\n" % (n + 1, n))
        source.append(b"M 100644 inline number\ndata %d\n%d\n" % (len(str(n)), n))
    for n in range(refs - 1):
        source.append(b"reset refs/heads/branch/%d\nfrom :%d\n" % (n, files + 1 + n % count))
    run("git", f"--git-dir={path}", "fast-import", "--quiet", input=b"".join(source))
    run("git", f"--git-dir={path}", "repack", "-adbq")
    run("git", f"--git-dir={path}", "pack-refs", "--all")
    return path


def cpu(pid):
    """Seconds that a process and the children it waited for have used."""
    fields = open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def shares(pid):
    """The same by who used it: the process for its own work and in the kernel, its children likewise."""
    fields = open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()
    return [int(field) / os.sysconf("SC_CLK_TCK") for field in fields[11:15]]


def timed(work):
    began = time.monotonic()
    work()
    return time.monotonic() - began


def interleaved(works, rounds=ROUNDS):
    """Medians of works that take turns; a first turn of each is not counted."""
    taken = {name: [] for name in works}
    for round in range(rounds + 1):
        for name, work in works.items():
            seconds = timed(work)
            if round:
                taken[name].append(seconds)
    return {name: statistics.median(values) for name, values in taken.items()}


def programs(url):
    """How many programs the gate, which runs under strace, starts for each request."""
    trace = root / "trace"
    started = lambda: sum(line.rstrip().endswith("= 0") for line in trace.read_text(errors="replace").splitlines())
    settled = lambda: time.sleep(3)  # a kept session, the packing of the mirror
    work = root / "work"

    def commit_and_push():
        (work / "mine").write_text("mine\n")
        run("git", "add", "mine", cwd=work)
        run("git", "commit", "-qm", "mine", cwd=work)
        run("git", "push", "-q", "origin", "HEAD:refs/heads/counted", cwd=work)
    steps = {
        "ls-remote": lambda: run("git", "ls-remote", url("small")),
        "clone": lambda: run("git", "clone", "-q", url("small"), work),
        "fetch of nothing": lambda: run("git", "fetch", "-q", cwd=work),
        "clone over HTTP": lambda: run("git", "clone", "-q", url("small").replace("git:", "http:"), root / "http"),
        "push of one commit": commit_and_push,
    }
    run("git", "ls-remote", url("small"))
    settled()
    head({"COUNT": 1, "LARGE_MB": LARGE_MB, "LARGE_REFS": LARGE_REFS})
    tell("| request | programs |\n|---|---:|")
    for what, step in steps.items():
        before = started()
        step()
        settled()
        tell(f"| {what} | {started() - before} |")



def row(what, medians, unit=1000, form="{:.0f} ms", goal=""):
    show = lambda name: form.format(medians[name] * unit) if name in medians else "–"
    ratio = medians["gate"] / medians["direct"]
    tell(f"| {what} | {show('gate')} | {show('direct')} | {show('daemon')} | {ratio:.2f} | {goal} |")


def main():
    for key in ("identity", "host"):
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", root / key)
    ssh_port = port()
    (root / "authorized").write_text((root / "identity.pub").read_text())
    (root / "known").write_text(f"[127.0.0.1]:{ssh_port} " + (root / "host.pub").read_text())
    # Another home keeps the login shell from the start-up files of whoever runs this.
    (root / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1:{ssh_port}\nHostKey {root}/host\nAuthorizedKeysFile {root}/authorized\nStrictModes no\nUsePAM no\n"
        f"PermitRootLogin yes\nPidFile none\nMaxStartups 100\nMaxSessions 100\nAcceptEnv GIT_PROTOCOL\n"
        f"SetEnv PATH={os.environ['PATH']} HOME=/nonexistent\n")
    os.makedirs("/run/sshd", exist_ok=True)
    start("/usr/sbin/sshd", "-D", "-e", "-f", root / "sshd_config")
    wait_for(ssh_port)
    user = subprocess.run(["id", "-un"], stdout=subprocess.PIPE, text=True).stdout.strip()
    print(f"making repositories in {root}", file=sys.stderr)
    upstream = {"small": make("small", 500, 1), "large": make("large", LARGE_REFS, LARGE_MB)}
    # A copy for each way to push, so that none has to fetch what went another way.
    pushed = {kind: root / f"pushed-{kind}.git" for kind in ("direct", "light", "gate", "daemon")}
    for path in pushed.values():
        shutil.copytree(upstream["small"], path)
    served = {**upstream, "pushed": pushed["gate"]}
    at = lambda path: f"ssh://{user}@127.0.0.1:{ssh_port}{path}"
    ssh = {name: at(path) for name, path in served.items()}

    (root / "config").mkdir()
    host_key = " ".join((root / "host.pub").read_text().split()[:2])
    entries = [f"  - {{name: {name}, upstream: '{url}', identity: {root}/identity, host_key: '{host_key}', push: {{allow: ['refs/heads/*']}}}}\n"
               for name, url in ssh.items()]
    (root / "config/repos.yaml").write_text("repos:\n" + "".join(entries))
    gate_port = port()
    (root / "run").mkdir()
    counted = ["strace", "-f", "-qq", "-e", "trace=execve", "-o", root / "trace"] if os.environ.get("COUNT") else []
    gate = start(*counted, GATE, "--config", root / "config", "--repo-dir", root / "mirrors", "--state-dir", root / "state",
                 "--run-dir", root / "run", "--listen", f"127.0.0.1:{gate_port}")
    wait_for(gate_port)
    url = lambda name: f"git://127.0.0.1:{gate_port}/{name}.git"
    rss = lambda: int(next(l for l in open(f"/proc/{gate.pid}/status") if l.startswith("VmRSS")).split()[1]) / 1024
    idle = rss()
    for name in served:
        run("git", "ls-remote", url(name))
    if counted:
        programs(url)
        return "programs"

    # git daemon: a mirror that an access hook refreshes, and a pre-receive hook that scans and forwards.
    hooked, hook_port = root / "hooked", port()
    hooked.mkdir()
    behind = {**upstream, "pushed": pushed["daemon"]}
    for name, path in behind.items():
        run("git", "clone", "-q", "--mirror", path, hooked / f"{name}.git")
        run("git", "remote", "set-url", "origin", at(path), cwd=hooked / f"{name}.git")
        pre = hooked / f"{name}.git/hooks/pre-receive"
        pre.write_text(f"#!/bin/sh\nwhile read old new ref; do\n  {GATE} scan . $old..$new || exit 1\n"
                       f"  GIT_SSH_COMMAND='{SSH}' git -c remote.origin.fetch= -c remote.origin.mirror=false push -q {at(path)} $new:$ref || exit 1\ndone\n")
        pre.chmod(0o755)
    access = root / "access"
    access.write_text(f"#!/bin/sh\ncd \"$2\" && GIT_SSH_COMMAND='{SSH}' exec git fetch -q --prune origin >/dev/null 2>&1\n")
    access.chmod(0o755)
    start("git", "daemon", "--listen=127.0.0.1", f"--port={hook_port}", f"--base-path={hooked}", "--export-all", "--reuseaddr",
          "--enable=receive-pack", f"--access-hook={access}")
    wait_for(hook_port)
    hook = lambda name: f"git://127.0.0.1:{hook_port}/{name}.git"
    # Direct upload-pack, with bitmaps, for the processor time of a clone.
    plain_port = port()
    direct = start("/usr/lib/git-core/git-daemon", "--listen=127.0.0.1", f"--port={plain_port}", f"--base-path={root}", "--export-all", "--reuseaddr")
    wait_for(plain_port)

    deadline = time.monotonic() + 300
    packed = lambda: all(any((root / f"mirrors/{n}.git/objects/pack").glob("*.bitmap")) for n in served)
    while not packed() and time.monotonic() < deadline:
        time.sleep(0.5)

    fresh = {"GIT_SSH_COMMAND": SSH}
    # With the key exchange that the gate has, for OpenSSH's own is dearer.
    light = {"GIT_SSH_COMMAND": f"{SSH} -o KexAlgorithms=curve25519-sha256"}
    sized = {"small": "small (500 refs)", "large": f"large ({LARGE_REFS:,} refs, {LARGE_MB} MB)"}
    head({"ROUNDS": ROUNDS, "LARGE_MB": LARGE_MB, "LARGE_REFS": LARGE_REFS})
    tell("| what | git-gate | direct | git daemon with hooks | git-gate to direct | goal |\n|---|---:|---:|---:|---:|---:|")
    for name in upstream:
        row(f"ls-remote, {sized[name]}", interleaved({
            "direct": lambda: run("git", "ls-remote", ssh[name], env=fresh),
            "gate": lambda: run("git", "ls-remote", url(name)),
            "daemon": lambda: run("git", "ls-remote", hook(name)),
        }), goal="0.8")
    row("ls-remote, small, direct with curve25519", interleaved({
        "direct": lambda: run("git", "ls-remote", ssh["small"], env=light),
        "gate": lambda: run("git", "ls-remote", url("small")),
    }), goal="0.8")
    for name in upstream:
        for kind, address in (("direct", ssh[name]), ("gate", url(name)), ("daemon", hook(name))):
            run("git", "clone", "-q", "--bare", address, root / f"{kind}-{name}", env=fresh)
            run("git", "config", "remote.origin.fetch", "+refs/heads/*:refs/remotes/origin/*", cwd=root / f"{kind}-{name}")
            run("git", "fetch", "-q", cwd=root / f"{kind}-{name}", env=fresh)
        row(f"fetch of nothing, {sized[name]}", interleaved({
            kind: lambda kind=kind: run("git", "fetch", "-q", cwd=root / f"{kind}-{name}", env=fresh)
            for kind in ("direct", "gate", "daemon")
        }), goal="0.8")

    ways = {"direct": (at(pushed["direct"]), fresh), "light": (at(pushed["light"]), light), "gate": (url("pushed"), {}),
            "daemon": (hook("pushed"), {})}
    for kind, (where, env) in ways.items():
        run("git", "clone", "-q", where, root / f"push-{kind}", env=env)
    counter, used = iter(range(1 << 30)), []

    def push(kind):
        work, number = root / f"push-{kind}", next(counter)
        (work / "mine").write_text(f"{number}\n")
        run("git", "add", "mine", cwd=work)
        run("git", "commit", "-qm", "mine", cwd=work)
        before = cpu(gate.pid)
        seconds = timed(lambda: run("git", "push", "-q", "origin", f"HEAD:refs/heads/{kind}/{number}", cwd=work, env=ways[kind][1]))
        if kind == "gate":
            used.append(cpu(gate.pid) - before)
        return seconds
    taken = {kind: [] for kind in ways}
    for round in range(ROUNDS + 1):
        for kind in taken:
            seconds = push(kind)
            if round:
                taken[kind].append(seconds)
    medians = {kind: statistics.median(values) for kind, values in taken.items()}
    row("push of one commit", {kind: medians[kind] for kind in ("gate", "direct", "daemon")}, goal="1.3")
    row("push of one commit, direct with curve25519", {"gate": medians["gate"], "direct": medians["light"]}, goal="1.3")
    tell(f"| processor time of git-gate for a push | {statistics.median(used[1:]) * 1000:.0f} ms | – | – | – | 150 ms |")

    spent, used_by = {"gate": [], "direct": []}, {"gate": [0] * 4, "direct": [0] * 4}
    for round in range(ROUNDS):
        for kind, pid, address in (("direct", direct.pid, f"git://127.0.0.1:{plain_port}/large.git"), ("gate", gate.pid, url("large"))):
            before, parts = cpu(pid), shares(pid)
            run("git", "clone", "-q", "--bare", address, root / "clone")
            time.sleep(0.2)
            spent[kind].append(cpu(pid) - before)
            used_by[kind] = [sum + after - before for sum, after, before in zip(used_by[kind], shares(pid), parts)]
            shutil.rmtree(root / "clone")
    row(f"processor time to serve a clone, {sized['large']}", {k: statistics.median(v) for k, v in spent.items()}, goal="1.2")

    for kind, parts in used_by.items():
        own, own_kernel, programs_, programs_kernel = (1000 * part / ROUNDS for part in parts)
        print(f"  ({kind}: the daemon {own:.0f} ms and {own_kernel:.0f} ms in the kernel, its programs {programs_:.0f} and "
              f"{programs_kernel:.0f} ms)", file=sys.stderr)

    def sixteen(address):
        def go():
            clones = [subprocess.Popen(["git", "clone", "-q", "--bare", address, root / f"sixteen-{n}"], env={**ENV, **fresh},
                                       stderr=subprocess.DEVNULL) for n in range(16)]
            failed = sum(clone.wait() != 0 for clone in clones)
            for n in range(16):
                shutil.rmtree(root / f"sixteen-{n}", ignore_errors=True)
            if failed:
                failures.append(failed)
        return go
    failures = []
    row("16 clones at once, small", interleaved({"direct": sixteen(ssh["small"]), "gate": sixteen(url("small"))}, 5), goal="1.3")

    # Refs that move under four readers; of the large one they take no files.
    lost = {name: readers_lose(upstream[name], url(name), more) for name, more in (("small", []), ("large", ["--filter=blob:none"]))}
    tell(f"\nFailed of 16 clones at once, all rounds: {sum(failures)} (goal: 0). Failed of 80 clones while refs moved: "
         + ", ".join(f"{failed} of the {name} one ({moves} moves)" for name, (failed, moves) in lost.items())
         + f" (goal: 0). Resident memory of git-gate: {idle:.1f} MB after its start (goal: under 20), {rss():.1f} MB at the end.")
    return "times"


def readers_lose(upstream, address, more):
    """How many of 80 clones by four readers fail while refs move, and how often these did."""
    stop, moves = threading.Event(), 0

    def move():
        nonlocal moves
        while not stop.is_set():
            moves += 1
            run("git", "update-ref", f"refs/heads/moving/{moves % 20}", f"main~{moves % 100}", cwd=upstream)
            run("git", "update-ref", "-d", f"refs/heads/moving/{(moves + 7) % 20}", cwd=upstream)

    def read(reader):
        failed = 0
        for n in range(20):
            clone = root / f"reader-{reader}-{n}"
            command = ["git", "clone", "-q", "--bare", *more, address, clone]
            done = subprocess.run(command, env=ENV, stderr=subprocess.PIPE)
            if done.returncode:
                print(done.stderr.decode(errors="replace"), file=sys.stderr)
            failed += done.returncode != 0
            shutil.rmtree(clone, ignore_errors=True)
        return failed
    mover = threading.Thread(target=move)
    mover.start()
    try:
        with concurrent.futures.ThreadPoolExecutor(4) as readers:
            return sum(readers.map(read, range(4))), moves
    finally:
        stop.set()
        mover.join()


try:
    section = main()
    if WRITE:
        write(section)
finally:
    for process in reversed(started):
        # strace ends with what it traces, and not before.
        try:
            traced = open(f"/proc/{process.pid}/task/{process.pid}/children").read().split() if process.args[0] == "strace" else []
            for pid in traced:
                os.kill(int(pid), signal.SIGTERM)
        except (FileNotFoundError, ProcessLookupError):
            traced = []
        if not traced:
            process.terminate()
        process.wait()
    shutil.rmtree(root, ignore_errors=True)
