//! Which system calls a bottle's processes may make: an allow-list.
//!
//! Three answers: allowed; EPERM for what is known and refused; ENOSYS for what a program tries first and has an older
//! way for (clone3, openat2, io_uring) and for calls newer than this list. A call of another architecture kills.

use std::collections::BTreeMap;
use std::io;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};

mod calls;

/// Why there is no filter.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// The filter cannot be made for this machine.
    #[error("cannot build the system call filter")]
    Build(#[source] seccompiler::BackendError),
    /// The kernel does not take it.
    #[error("cannot install the system call filter")]
    Install(#[source] seccompiler::Error),
}

/// Whether datagrams may be sent over IP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Datagrams {
    /// Where loopback is all there is.
    Allowed,
    /// Where a link leads to the host: what is sent to all on it comes to the host's own services, whatever addresses the link has.
    Refused,
}

/// The two programs, compiled before they are needed.
#[derive(Debug)]
pub struct Filter {
    allowed: BpfProgram,
    absent: BpfProgram,
}

impl Filter {
    /// Compiles the filter for this machine.
    pub fn compile(datagrams: Datagrams) -> Result<Filter, FilterError> {
        let architecture = TargetArch::try_from(std::env::consts::ARCH).map_err(FilterError::Build)?;
        let compile = |rules, mismatch, matched| -> Result<BpfProgram, FilterError> {
            SeccompFilter::new(rules, mismatch, matched, architecture)
                .and_then(BpfProgram::try_from)
                .map_err(FilterError::Build)
        };
        let refused = SeccompAction::Errno(libc::EPERM as u32);
        let unknown = SeccompAction::Errno(libc::ENOSYS as u32);
        let allowed =
            compile(allowed(datagrams).map_err(FilterError::Build)?, refused, SeccompAction::Allow)?;
        let absent = compile(absent(), SeccompAction::Allow, unknown)?;
        Ok(Filter { allowed, absent })
    }

    /// Puts the filter on this thread and all that it starts. Needs no_new_privs.
    pub fn install(&self) -> Result<(), FilterError> {
        // Both answer with an errno where both refuse; the kernel takes that of the filter installed last.
        seccompiler::apply_filter(&self.allowed).map_err(FilterError::Install)?;
        seccompiler::apply_filter(&self.absent).map_err(FilterError::Install)
    }
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;
type Built<T> = Result<T, seccompiler::BackendError>;

/// What passes: the plain list, and calls that depend on an argument.
fn allowed(datagrams: Datagrams) -> Built<Rules> {
    let mut rules: Rules = calls::ALLOWED.iter().map(|call| (*call, Vec::new())).collect();
    rules.extend([
        (libc::SYS_socket, sockets(datagrams)?),
        (libc::SYS_socketpair, vec![all([equals(0, libc::AF_UNIX as u64)?])?]),
        (libc::SYS_clone, vec![all([without(0, NEW_NAMESPACES)?])?]),
        (libc::SYS_unshare, vec![all([without(0, NEW_NAMESPACES | libc::CLONE_NEWTIME as u64)?])?]),
        (
            libc::SYS_ioctl,
            vec![all([differs(1, libc::TIOCSTI)?, differs(1, TIOCLINUX)?, differs(1, TIOCSETD)?])?],
        ),
        (libc::SYS_personality, personalities()?),
        (libc::SYS_fchmod, vec![all([without(1, SET_ID)?])?]),
        (libc::SYS_fchmodat, vec![all([without(2, SET_ID)?])?]),
        (libc::SYS_fchmodat2, vec![all([without(2, SET_ID)?])?]),
        (libc::SYS_openat, opening(2)?),
        (libc::SYS_mkdirat, vec![all([without(2, SET_ID)?])?]),
        (libc::SYS_mknodat, vec![all([without(2, SET_ID)?])?]),
    ]);
    #[cfg(target_arch = "x86_64")]
    rules.extend([
        (libc::SYS_chmod, vec![all([without(1, SET_ID)?])?]),
        (libc::SYS_open, opening(1)?),
        (libc::SYS_creat, vec![all([without(1, SET_ID)?])?]),
        (libc::SYS_mkdir, vec![all([without(1, SET_ID)?])?]),
        (libc::SYS_mknod, vec![all([without(1, SET_ID)?])?]),
    ]);
    Ok(rules)
}

/// What is answered as if this kernel did not have it.
fn absent() -> Rules {
    let newer =
        ((calls::NEWEST_KNOWN + 1)..=calls::LAST_IMAGINED).filter(|call| !calls::ALLOWED.contains(call));
    calls::ABSENT.iter().copied().chain(newer).map(|call| (call, Vec::new())).collect()
}

const NEW_NAMESPACES: u64 = (libc::CLONE_NEWUSER
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWCGROUP) as u64;
const SET_ID: u64 = (libc::S_ISUID | libc::S_ISGID) as u64;
const TIOCLINUX: libc::c_ulong = 0x541C;
const TIOCSETD: libc::c_ulong = 0x5423;
const QUERY_PERSONALITY: u64 = 0xffff_ffff;
/// The bit that makes O_TMPFILE more than O_DIRECTORY.
const TEMPORARY: u64 = (libc::O_TMPFILE & !libc::O_DIRECTORY) as u64;

/// Unix sockets; IPv4 and IPv6 with the protocols that need no module; netlink for routes, which is how a program lists
/// its interfaces.
fn sockets(datagrams: Datagrams) -> Built<Vec<SeccompRule>> {
    let mut rules = vec![
        all([equals(0, libc::AF_UNIX as u64)?])?,
        all([equals(0, libc::AF_NETLINK as u64)?, equals(2, libc::NETLINK_ROUTE as u64)?])?,
    ];
    for family in [libc::AF_INET, libc::AF_INET6] {
        for protocol in [0, libc::IPPROTO_TCP, libc::IPPROTO_UDP, libc::IPPROTO_ICMP, libc::IPPROTO_ICMPV6] {
            let (family, protocol) = (equals(0, family as u64)?, equals(2, protocol as u64)?);
            rules.push(match datagrams {
                Datagrams::Allowed => all([family, protocol])?,
                Datagrams::Refused => all([family, protocol, is_stream(1)?])?,
            });
        }
    }
    Ok(rules)
}

fn personalities() -> Built<Vec<SeccompRule>> {
    [0, libc::ADDR_NO_RANDOMIZE as u64, QUERY_PERSONALITY]
        .map(|value| all([equals(0, value)?]))
        .into_iter()
        .collect()
}

/// Opens with the flags in argument `flags` and the mode after it: one that creates nothing, or creates without set-id.
fn opening(flags: u8) -> Built<Vec<SeccompRule>> {
    Ok(vec![all([without(flags, libc::O_CREAT as u64 | TEMPORARY)?])?, all([without(flags + 1, SET_ID)?])?])
}

fn all<const N: usize>(conditions: [SeccompCondition; N]) -> Built<SeccompRule> {
    SeccompRule::new(conditions.into())
}

// The kernel reads these arguments as 32 bits, so the filter does too: what stands above them is noise, or an attempt.

fn equals(argument: u8, value: u64) -> Built<SeccompCondition> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value)
}

/// Whether the kind of socket in `argument`, without its flags, is a stream.
fn is_stream(argument: u8) -> Built<SeccompCondition> {
    const KIND: u64 = 0xf;
    let stream = libc::SOCK_STREAM as u64;
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(KIND), stream)
}

fn differs(argument: u8, value: libc::c_ulong) -> Built<SeccompCondition> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, value)
}

fn without(argument: u8, bits: u64) -> Built<SeccompCondition> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(bits), 0)
}

impl From<FilterError> for io::Error {
    fn from(error: FilterError) -> io::Error {
        let errno = match &error {
            FilterError::Install(seccompiler::Error::Prctl(cause) | seccompiler::Error::Seccomp(cause)) => {
                cause.raw_os_error()
            }
            FilterError::Install(_) | FilterError::Build(_) => None,
        };
        errno.map_or_else(|| io::Error::other(error), io::Error::from_raw_os_error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_call_is_both_allowed_and_absent() {
        let absent = absent();
        let both: Vec<_> = allowed(Datagrams::Allowed)
            .expect("valid rules")
            .into_keys()
            .filter(|call| absent.contains_key(call))
            .collect();
        assert_eq!(both, Vec::<i64>::new());
    }

    #[test]
    fn a_plain_list_entry_never_shadows_a_rule_on_arguments() {
        let conditional = allowed(Datagrams::Allowed).expect("valid rules").into_iter();
        let conditional = conditional.filter(|(_, rules)| !rules.is_empty());
        let shadowed: Vec<_> =
            conditional.map(|(call, _)| call).filter(|call| calls::ALLOWED.contains(call)).collect();
        assert_eq!(shadowed, Vec::<i64>::new());
    }

    #[test]
    fn calls_that_reach_beyond_the_bottle_are_not_on_the_list() {
        let allowed = allowed(Datagrams::Allowed).expect("valid rules");
        let dangerous = [
            libc::SYS_mount,
            libc::SYS_umount2,
            libc::SYS_pivot_root,
            libc::SYS_chroot,
            libc::SYS_setns,
            libc::SYS_open_tree,
            libc::SYS_move_mount,
            libc::SYS_mount_setattr,
            libc::SYS_fsopen,
            libc::SYS_bpf,
            libc::SYS_perf_event_open,
            libc::SYS_userfaultfd,
            libc::SYS_keyctl,
            libc::SYS_add_key,
            libc::SYS_request_key,
            libc::SYS_io_uring_setup,
            libc::SYS_open_by_handle_at,
            libc::SYS_kexec_load,
            libc::SYS_init_module,
            libc::SYS_finit_module,
            libc::SYS_reboot,
            libc::SYS_swapon,
            libc::SYS_acct,
            libc::SYS_quotactl,
            libc::SYS_syslog,
            libc::SYS_clone3,
            libc::SYS_openat2,
            libc::SYS_pidfd_getfd,
            libc::SYS_process_vm_readv,
            libc::SYS_process_vm_writev,
            libc::SYS_kcmp,
            libc::SYS_fanotify_init,
        ];
        let present: Vec<_> = dangerous.into_iter().filter(|call| allowed.contains_key(call)).collect();
        assert_eq!(present, Vec::<i64>::new());
    }

    #[test]
    fn the_filter_compiles_for_this_machine() {
        assert!(
            [Datagrams::Allowed, Datagrams::Refused].into_iter().all(|which| Filter::compile(which).is_ok())
        );
    }
}
