//! The system call filter.

use crate::support::{Bottle, Caller};

#[test]
fn sockets_are_of_four_families() {
    const FAMILIES: &str = "
print(*[attempt(socket.socket, family, kind, protocol) for family, kind, protocol in
        [(socket.AF_UNIX, 1, 0), (socket.AF_INET, 1, 0), (socket.AF_INET6, 2, 0), (socket.AF_NETLINK, 3, 0)]])
print(*[call(41, family, kind, protocol) for family, kind, protocol in
        [(40, 1, 0), (17, 3, 0), (44, 3, 0), (38, 5, 0), (15, 3, 2), (16, 3, 16), (16, 3, 9), (31, 3, 1), (2, 1, 132), (2, 3, 255),
         (40 + (1 << 32), 1, 0), (16, 3, (1 << 32) + 16)]])
print(call(53, 40, 1, 0, ctypes.create_string_buffer(8)))";
    for caller in Caller::all() {
        let bottle = Bottle::of(caller);
        let refused = ["EPERM"; 12].join(" ");
        assert_eq!(bottle.python("", FAMILIES), format!("done done done done\n{refused}\nEPERM"));
        let open = bottle.python("seccomp", FAMILIES);
        // Netlink needs no module: the kernel itself gives it.
        assert_eq!(open.lines().nth(1).unwrap().split(' ').nth(5), Some("done"), "{open}");
    }
}

#[test]
fn calls_that_reach_beyond_the_bottle_are_refused() {
    // Numbers of x86-64.
    const CALLS: &str = "
space = ctypes.create_string_buffer(256)
refused = dict(keyctl=(250, 1, None), add_key=(248, b'user', b'x', b'x', 1, -3), bpf=(321, 0, space, 128), perf=(298, space, 0, -1, -1, 0),
    userfaultfd=(323, 0), mount=(165, None, b'/', None, 0, None), umount=(166, b'/usr', 2), unshare=(272, 0x10000000),
    unshare_time=(272, 0x80), setns=(308, 0, 0), clone=(56, 0x10000011, None, None, None, None), pivot=(155, b'.', b'.'),
    chroot=(161, b'.'), open_tree=(428, -100, b'/', 1), move_mount=(429, -100, b'/', -100, b'/', 0), fsopen=(430, b'tmpfs', 0),
    handle=(303, -100, b'/', space, space, 0), syslog=(103, 3, space, 256), readv=(310, 1, space, 0, space, 0, 0),
    swapon=(167, b'x', 0), module=(175, space, 0, space), reboot=(169, 0, 0, 0, None), personality=(135, 0x0400000),
    pidfd_getfd=(438, 0, 0, 0), fanotify=(300, 0, 0), x32=(0x40000000 + 39,), linux=(16, 0, 0x541C, space), discipline=(16, 0, 0x5423, space),
    push=(16, 0, 0x5412 + (7 << 32), space))
absent = dict(io_uring=(425, 1, space), clone3=(435, space, 64), openat2=(437, -100, b'.', space, 24), newest=(499,))
print({name: answer for name, words in refused.items() if (answer := call(*words)) != 'EPERM'})
print({name: answer for name, words in absent.items() if (answer := call(*words)) != 'ENOSYS'})";
    for caller in Caller::all() {
        let bottle = Bottle::of(caller);
        assert_eq!(bottle.python("", CALLS), "{}\n{}");
        let open = bottle.python("seccomp", "space = ctypes.create_string_buffer(256)\nprint(call(250, 1, None), call(425, 1, space), call(272, 0x10000000))");
        assert!(open.starts_with("done done done") || open.starts_with("done EPERM done"), "{open}");
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn a_call_of_another_architecture_kills() {
    // mov eax, 20 (getpid of i386); int 0x80; ret
    const LEGACY: &str = "
import mmap
code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
code.write(b'\\xb8\\x14\\x00\\x00\\x00\\xcd\\x80\\xc3')
ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))()
print('ran')";
    for caller in Caller::all() {
        let bottle = Bottle::of(caller);
        let program = format!("import ctypes\n{LEGACY}");
        let run =
            |without: &str| bottle.run(without, ["/usr/bin/python3", "-I", "-c", &program]).output().unwrap();
        assert_eq!(run("").status.code(), Some(128 + 31));
        assert_ne!(run("seccomp").status.code(), Some(128 + 31));
    }
}

#[test]
fn everyday_tools_work() {
    const TOOLS: &str = r#"
set -e
bash -c 'echo bash | tr a-z A-Z'
curl --version | head -c 4; echo
git init -q repo && cd repo && git -c user.name=a -c user.email=a@b commit -q --allow-empty -m m && git log --format=%s
printf '#include <stdio.h>\nint main(void){puts("gcc");return 0;}\n' >a.c && gcc -O1 a.c -o a && ./a
python3 -c 'import subprocess, threading, multiprocessing; t = threading.Thread(target=print, args=("python",)); t.start(); t.join(); assert multiprocessing.Pool(2).map(abs, [-1]) == [1]'
test ! -x /usr/bin/node || node -e 'const { Worker } = require("worker_threads"); new Worker("1", { eval: true }).on("exit", () => console.log("node"))'
mkfifo p; (echo pipe >p &) ; cat p
test -c /dev/null && test -w /dev/shm && test -w "$HOME" && test -w /tmp && test -w /var/tmp && echo places
"#;
    for caller in Caller::all() {
        let said = Bottle::of(caller).shell("", TOOLS);
        let wanted = ["BASH", "curl", "m", "gcc", "python", "node", "pipe", "places"];
        let missing: Vec<_> = wanted
            .into_iter()
            .filter(|word| {
                (*word != "node" || std::path::Path::new("/usr/bin/node").exists())
                    && !said.lines().any(|line| line == *word)
            })
            .collect();
        assert_eq!(missing, [""; 0], "{said}");
    }
}
