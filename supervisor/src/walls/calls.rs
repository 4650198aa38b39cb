//! Which system calls a daemon may make: an allow-list. What is not on it is answered with ENOSYS, as by a kernel that lacks it, so
//! that a library takes its older way; a call of another architecture ends the process.

use std::collections::BTreeMap;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use crate::daemon::Daemon;

/// Stands in the filter where the process's own pid belongs, which nobody knows before the fork. No pid is as large.
pub(crate) const OWN_PID: u32 = 0x7fff_b0b0;

/// Calls of every daemon, whatever their arguments are.
#[rustfmt::skip]
const EVERYONE: &[i64] = &[
    // Files, within what Landlock and the uid allow.
    libc::SYS_read, libc::SYS_write, libc::SYS_readv, libc::SYS_writev, libc::SYS_pread64, libc::SYS_pwrite64,
    libc::SYS_preadv, libc::SYS_pwritev, libc::SYS_preadv2, libc::SYS_pwritev2, libc::SYS_lseek, libc::SYS_close, libc::SYS_close_range,
    libc::SYS_openat, libc::SYS_fstat, libc::SYS_newfstatat, libc::SYS_statx, libc::SYS_statfs, libc::SYS_fstatfs,
    libc::SYS_faccessat, libc::SYS_faccessat2, libc::SYS_readlinkat, libc::SYS_getdents64, libc::SYS_getcwd, libc::SYS_chdir, libc::SYS_fchdir,
    libc::SYS_mkdirat, libc::SYS_unlinkat, libc::SYS_renameat, libc::SYS_renameat2, libc::SYS_linkat, libc::SYS_symlinkat,
    libc::SYS_fchmod, libc::SYS_fchmodat, libc::SYS_utimensat, libc::SYS_umask,
    libc::SYS_ftruncate, libc::SYS_truncate, libc::SYS_fallocate, libc::SYS_fadvise64, libc::SYS_readahead,
    libc::SYS_fsync, libc::SYS_fdatasync, libc::SYS_sync_file_range, libc::SYS_syncfs, libc::SYS_flock, libc::SYS_fcntl,
    libc::SYS_dup, libc::SYS_dup3, libc::SYS_pipe2, libc::SYS_splice, libc::SYS_tee, libc::SYS_sendfile, libc::SYS_copy_file_range,
    // Memory.
    libc::SYS_mmap, libc::SYS_munmap, libc::SYS_mprotect, libc::SYS_mremap, libc::SYS_madvise, libc::SYS_mincore, libc::SYS_msync, libc::SYS_brk,
    libc::SYS_mlock, libc::SYS_mlock2, libc::SYS_munlock, libc::SYS_membarrier,
    libc::SYS_pkey_alloc, libc::SYS_pkey_free, libc::SYS_pkey_mprotect,
    // Waiting, threads, time.
    libc::SYS_ppoll, libc::SYS_pselect6, libc::SYS_epoll_create1, libc::SYS_epoll_ctl, libc::SYS_epoll_pwait, libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2, libc::SYS_timerfd_create, libc::SYS_timerfd_settime, libc::SYS_timerfd_gettime, libc::SYS_signalfd4,
    libc::SYS_futex, libc::SYS_futex_waitv, libc::SYS_set_robust_list, libc::SYS_get_robust_list, libc::SYS_rseq, libc::SYS_set_tid_address,
    libc::SYS_sched_yield, libc::SYS_sched_getaffinity, libc::SYS_sched_getparam, libc::SYS_sched_getscheduler, libc::SYS_getcpu,
    libc::SYS_sched_get_priority_max, libc::SYS_sched_get_priority_min, libc::SYS_getpriority,
    libc::SYS_nanosleep, libc::SYS_clock_nanosleep, libc::SYS_clock_gettime, libc::SYS_clock_getres, libc::SYS_gettimeofday, libc::SYS_times,
    libc::SYS_getitimer, libc::SYS_setitimer, libc::SYS_timer_create, libc::SYS_timer_settime, libc::SYS_timer_gettime, libc::SYS_timer_delete,
    libc::SYS_rt_sigaction, libc::SYS_rt_sigprocmask, libc::SYS_rt_sigreturn, libc::SYS_rt_sigpending, libc::SYS_rt_sigsuspend,
    libc::SYS_rt_sigtimedwait, libc::SYS_sigaltstack, libc::SYS_restart_syscall,
    // The process itself.
    libc::SYS_exit, libc::SYS_exit_group, libc::SYS_getpid, libc::SYS_gettid, libc::SYS_getppid, libc::SYS_getuid, libc::SYS_geteuid,
    libc::SYS_getgid, libc::SYS_getegid, libc::SYS_getgroups, libc::SYS_getresuid, libc::SYS_getresgid, libc::SYS_getpgid, libc::SYS_getsid,
    libc::SYS_getrlimit, libc::SYS_setrlimit, libc::SYS_prlimit64, libc::SYS_getrusage, libc::SYS_sysinfo, libc::SYS_uname,
    libc::SYS_prctl, libc::SYS_capget, libc::SYS_getrandom,
    // The first exec is ours; who may make another is decided below.
    libc::SYS_execve, libc::SYS_execveat,
    // Sockets that it has.
    libc::SYS_bind, libc::SYS_listen, libc::SYS_accept, libc::SYS_accept4, libc::SYS_connect, libc::SYS_shutdown,
    libc::SYS_getsockname, libc::SYS_getpeername, libc::SYS_getsockopt, libc::SYS_setsockopt,
    libc::SYS_sendto, libc::SYS_sendmsg, libc::SYS_sendmmsg, libc::SYS_recvfrom, libc::SYS_recvmsg, libc::SYS_recvmmsg,
    // The older forms, which only this architecture has.
    #[cfg(target_arch = "x86_64")] libc::SYS_open, #[cfg(target_arch = "x86_64")] libc::SYS_creat,
    #[cfg(target_arch = "x86_64")] libc::SYS_stat, #[cfg(target_arch = "x86_64")] libc::SYS_lstat, #[cfg(target_arch = "x86_64")] libc::SYS_access,
    #[cfg(target_arch = "x86_64")] libc::SYS_readlink, #[cfg(target_arch = "x86_64")] libc::SYS_getdents, #[cfg(target_arch = "x86_64")] libc::SYS_mkdir,
    #[cfg(target_arch = "x86_64")] libc::SYS_rmdir, #[cfg(target_arch = "x86_64")] libc::SYS_unlink, #[cfg(target_arch = "x86_64")] libc::SYS_rename,
    #[cfg(target_arch = "x86_64")] libc::SYS_link, #[cfg(target_arch = "x86_64")] libc::SYS_symlink, #[cfg(target_arch = "x86_64")] libc::SYS_chmod,
    #[cfg(target_arch = "x86_64")] libc::SYS_dup2, #[cfg(target_arch = "x86_64")] libc::SYS_pipe, #[cfg(target_arch = "x86_64")] libc::SYS_poll,
    #[cfg(target_arch = "x86_64")] libc::SYS_select, #[cfg(target_arch = "x86_64")] libc::SYS_epoll_create, #[cfg(target_arch = "x86_64")] libc::SYS_epoll_wait,
    #[cfg(target_arch = "x86_64")] libc::SYS_eventfd, #[cfg(target_arch = "x86_64")] libc::SYS_time, #[cfg(target_arch = "x86_64")] libc::SYS_alarm,
    #[cfg(target_arch = "x86_64")] libc::SYS_pause, #[cfg(target_arch = "x86_64")] libc::SYS_getpgrp, #[cfg(target_arch = "x86_64")] libc::SYS_utime,
    #[cfg(target_arch = "x86_64")] libc::SYS_utimes, #[cfg(target_arch = "x86_64")] libc::SYS_arch_prctl,
];

/// Calls of git-gate, which starts git, and ends it.
#[rustfmt::skip]
const WITH_CHILDREN: &[i64] = &[
    libc::SYS_wait4, libc::SYS_waitid, libc::SYS_kill, libc::SYS_tkill, libc::SYS_tgkill, libc::SYS_pidfd_open, libc::SYS_pidfd_send_signal,
    libc::SYS_setsid, libc::SYS_setpgid, libc::SYS_setpriority, libc::SYS_sched_setaffinity, libc::SYS_sched_setscheduler, libc::SYS_sched_setparam,
    libc::SYS_ioprio_get, libc::SYS_ioprio_set,
    // It may put further walls around its children.
    libc::SYS_landlock_create_ruleset, libc::SYS_landlock_add_rule, libc::SYS_landlock_restrict_self,
    #[cfg(target_arch = "x86_64")] libc::SYS_fork, #[cfg(target_arch = "x86_64")] libc::SYS_vfork,
];

/// Calls of egress, which notices when other routes are mounted.
const WITH_WATCHES: &[i64] =
    &[libc::SYS_inotify_init1, libc::SYS_inotify_add_watch, libc::SYS_inotify_rm_watch];

/// Requests of ioctl that are no way to anything: what a library asks of sockets, pipes and terminals.
const REQUESTS: &[u64] = &[
    libc::FIONBIO,
    libc::FIONREAD,
    libc::FIOCLEX,
    libc::FIONCLEX,
    libc::TCGETS,
    libc::TIOCGWINSZ,
    libc::TIOCGPGRP,
    libc::TIOCOUTQ,
    libc::FS_IOC_GETFLAGS,
    FICLONE,
];
/// Makes a file of the blocks of another.
const FICLONE: u64 = 0x4004_9409;

/// Flags that make a namespace.
const NEW_NAMESPACES: u64 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u64;

type Built<T> = Result<T, BackendError>;

/// The filter of a daemon.
pub(crate) fn filter(daemon: Daemon) -> Built<BpfProgram> {
    let allowed = |calls: &[i64]| -> Vec<(i64, Vec<SeccompRule>)> {
        calls.iter().map(|call| (*call, Vec::new())).collect()
    };
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = allowed(EVERYONE).into_iter().collect();
    rules.insert(
        libc::SYS_ioctl,
        REQUESTS.iter().map(|request| rule(equals(1, *request)?)).collect::<Built<_>>()?,
    );
    rules.insert(libc::SYS_socketpair, vec![rule(equals(0, libc::AF_UNIX as u64)?)?]);
    match daemon {
        Daemon::Egress => {
            rules.insert(
                libc::SYS_socket,
                sockets(&[libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK])?,
            );
            rules.extend(allowed(WITH_WATCHES));
            rules.extend(alone()?);
        }
        Daemon::GitGate => {
            rules.insert(
                libc::SYS_socket,
                sockets(&[libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK])?,
            );
            rules.extend(allowed(WITH_CHILDREN));
            rules.insert(libc::SYS_clone, vec![rule(masked(0, NEW_NAMESPACES, 0)?)?]);
        }
        Daemon::Supervise => {
            // It dials nobody: its listening socket is handed to it, and the others are local.
            rules.insert(libc::SYS_socket, sockets(&[libc::AF_UNIX])?);
            rules.extend(alone()?);
        }
    }
    let architecture = TargetArch::try_from(std::env::consts::ARCH)?;
    let unknown = SeccompAction::Errno(libc::ENOSYS as u32);
    SeccompFilter::new(rules, unknown, SeccompAction::Allow, architecture)?.try_into()
}

/// Threads but no processes, and signals to itself alone.
fn alone() -> Built<[(i64, Vec<SeccompRule>); 2]> {
    let thread = libc::CLONE_THREAD as u64;
    Ok([
        (libc::SYS_clone, vec![rule(masked(0, thread | NEW_NAMESPACES, thread)?)?]),
        (libc::SYS_tgkill, vec![rule(equals(0, u64::from(OWN_PID))?)?]),
    ])
}

fn sockets(families: &[i32]) -> Built<Vec<SeccompRule>> {
    families.iter().map(|family| rule(equals(0, *family as u64)?)).collect()
}

fn rule(condition: SeccompCondition) -> Built<SeccompRule> {
    SeccompRule::new(vec![condition])
}

fn equals(argument: u8, value: u64) -> Built<SeccompCondition> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value)
}

fn masked(argument: u8, mask: u64, value: u64) -> Built<SeccompCondition> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(mask), value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_daemon_has_a_filter_that_the_kernel_can_take() {
        for daemon in Daemon::ALL {
            let filter = filter(daemon).unwrap();
            assert!((100..4096).contains(&filter.len()), "{daemon}: {} instructions", filter.len());
        }
    }

    #[test]
    fn the_place_of_the_pid_stands_once_in_the_filters_of_those_that_are_alone() {
        let places = |daemon| filter(daemon).unwrap().iter().filter(|part| part.k == OWN_PID).count();
        assert_eq!(Daemon::ALL.map(places), [1, 0, 1]);
    }

    #[test]
    fn egress_alone_may_watch_files() {
        let number = u32::try_from(libc::SYS_inotify_init1).unwrap();
        let places = |daemon| filter(daemon).unwrap().iter().filter(|part| part.k == number).count();
        assert_eq!(Daemon::ALL.map(places), [1, 0, 0]);
    }

    #[test]
    fn what_makes_memory_programs_or_looks_into_others_is_on_no_list() {
        let dangerous = [
            libc::SYS_memfd_create,
            libc::SYS_ptrace,
            libc::SYS_process_vm_readv,
            libc::SYS_process_vm_writev,
            libc::SYS_pidfd_getfd,
            libc::SYS_bpf,
            libc::SYS_perf_event_open,
            libc::SYS_userfaultfd,
            libc::SYS_io_uring_setup,
            libc::SYS_keyctl,
            libc::SYS_add_key,
            libc::SYS_mount,
            libc::SYS_setns,
            libc::SYS_unshare,
            libc::SYS_setuid,
            libc::SYS_capset,
            libc::SYS_chroot,
            libc::SYS_pivot_root,
            libc::SYS_init_module,
            libc::SYS_kexec_load,
            libc::SYS_open_by_handle_at,
            libc::SYS_personality,
            libc::SYS_seccomp,
            libc::SYS_clone3,
            libc::SYS_mknodat,
            libc::SYS_reboot,
        ];
        for call in dangerous {
            assert!(!EVERYONE.contains(&call) && !WITH_CHILDREN.contains(&call), "{call}");
        }
    }
}
