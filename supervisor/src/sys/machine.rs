//! What only the init of a kernel does.

use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::Duration;

use nix::kmod::{ModuleInitFlags, finit_module};
use nix::sys::reboot::{RebootMode, reboot, set_cad_enabled};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socket, sockopt};
use nix::unistd::ForkResult;

/// Loads one module; one that is there already, or whose device is not, is no error.
pub(crate) fn load_module(path: &Path) -> io::Result<()> {
    /// MODULE_INIT_COMPRESSED_FILE: the kernel unpacks it.
    const COMPRESSED: u32 = 4;
    let file = std::fs::File::open(path)?;
    let plain = path.extension().is_some_and(|extension| extension == "ko");
    let flags = ModuleInitFlags::from_bits_retain(if plain { 0 } else { COMPRESSED });
    match finit_module(&file, c"", flags) {
        Ok(()) | Err(nix::errno::Errno::EEXIST | nix::errno::Errno::ENODEV) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn internet_socket() -> io::Result<OwnedFd> {
    Ok(socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?)
}

fn request(interface: &str) -> io::Result<libc::ifreq> {
    // SAFETY: all zeros is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if interface.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (place, byte) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *place = byte as libc::c_char;
    }
    Ok(request)
}

fn socket_address(address: Ipv4Addr) -> libc::sockaddr {
    // SAFETY: both are plain data of the same size, and sockaddr_in is what the family says.
    unsafe {
        let mut out: libc::sockaddr_in = std::mem::zeroed();
        out.sin_family = libc::AF_INET as libc::sa_family_t;
        out.sin_addr.s_addr = u32::from(address).to_be();
        std::mem::transmute::<libc::sockaddr_in, libc::sockaddr>(out)
    }
}

/// Makes one of the requests about interfaces.
fn ask<T>(kind: libc::Ioctl, argument: &T) -> io::Result<()> {
    let socket = internet_socket()?;
    // SAFETY: `argument` is the structure that this request reads, ifreq or rtentry.
    if unsafe { libc::ioctl(socket.as_raw_fd(), kind, std::ptr::from_ref(argument)) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Brings an interface up.
pub(crate) fn link_up(interface: &str) -> io::Result<()> {
    let mut request = request(interface)?;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    ask(libc::SIOCSIFFLAGS, &request)
}

/// Gives an interface an address.
pub(crate) fn set_address(interface: &str, address: Ipv4Addr, prefix: u8) -> io::Result<()> {
    let mut request = request(interface)?;
    request.ifr_ifru.ifru_addr = socket_address(address);
    ask(libc::SIOCSIFADDR, &request)?;
    let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
    request.ifr_ifru.ifru_netmask = socket_address(mask.into());
    ask(libc::SIOCSIFNETMASK, &request)
}

/// Sends what is for nobody here to this neighbour.
pub(crate) fn set_gateway(gateway: Ipv4Addr) -> io::Result<()> {
    // SAFETY: all zeros is a valid rtentry: everywhere, through no device in particular.
    let mut route: libc::rtentry = unsafe { std::mem::zeroed() };
    route.rt_dst = socket_address(Ipv4Addr::UNSPECIFIED);
    route.rt_genmask = socket_address(Ipv4Addr::UNSPECIFIED);
    route.rt_gateway = socket_address(gateway);
    route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
    ask(libc::SIOCADDRT, &route)
}

/// The address of Ethernet that an interface has; an error for one of another kind.
pub(crate) fn hardware_address(interface: &str) -> io::Result<[u8; 6]> {
    let mut request = request(interface)?;
    let socket = internet_socket()?;
    // SAFETY: the kernel fills this ifreq in, and the address is what it fills in for this request.
    let found = unsafe {
        if libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFHWADDR, &raw mut request) < 0 {
            return Err(io::Error::last_os_error());
        }
        request.ifr_ifru.ifru_hwaddr
    };
    if found.sa_family != libc::ARPHRD_ETHER {
        return Err(io::Error::other("it is no Ethernet"));
    }
    let mut address = [0; 6];
    for (place, byte) in address.iter_mut().zip(found.sa_data) {
        *place = byte.cast_unsigned();
    }
    Ok(address)
}

/// Sets the length of the longest packet of an interface.
pub(crate) fn set_mtu(interface: &str, mtu: u16) -> io::Result<()> {
    let mut request = request(interface)?;
    request.ifr_ifru.ifru_mtu = mtu.into();
    ask(libc::SIOCSIFMTU, &request)
}

/// A socket on this port that hears and asks one interface alone, broadcasts included.
pub(crate) fn socket_of(interface: &str, port: u16) -> io::Result<UdpSocket> {
    let socket = internet_socket()?;
    setsockopt(&socket, sockopt::BindToDevice, &interface.into())?;
    setsockopt(&socket, sockopt::Broadcast, &true)?;
    let address =
        nix::sys::socket::SockaddrIn::from(std::net::SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port));
    nix::sys::socket::bind(socket.as_raw_fd(), &address)?;
    Ok(socket.into())
}

/// A number that nobody else knows.
pub(crate) fn random_number() -> io::Result<u32> {
    let mut bytes = [0; 4];
    // SAFETY: the place has room for that many bytes.
    let count = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), libc::GRND_INSECURE) };
    if count == 4 { Ok(u32::from_ne_bytes(bytes)) } else { Err(io::Error::last_os_error()) }
}

/// Tells PID 1 what Ctrl-Alt-Del does.
pub(crate) fn ask_for_restart() {
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(1), nix::sys::signal::Signal::SIGINT);
}

/// The process that keeps the lease; 0 for none.
static KEEPER: AtomicI32 = AtomicI32::new(0);

/// Whether this child of ours belongs to the machine, and to no daemon.
pub(crate) fn is_keeper(pid: i32) -> bool {
    pid == KEEPER.load(Ordering::SeqCst)
}

/// Does something in a process of its own, for as long as the machine runs: a process below that one, started again when it ends.
pub(crate) fn keep_doing(name: &std::ffi::CStr, patience: Duration, act: impl Fn()) -> io::Result<()> {
    if let Some(keeper) = fork()? {
        KEEPER.store(keeper, Ordering::SeqCst);
        return Ok(());
    }
    let _ = nix::sys::prctl::set_name(name);
    loop {
        match fork() {
            Ok(Some(worker)) => {
                let _ = super::reap(worker);
            }
            Ok(None) => {
                let ready = super::exec::on_parent_death(libc::SIGKILL).and_then(|()| keep_to_the_network());
                if ready.is_ok() {
                    act();
                }
                std::process::exit(1);
            }
            Err(_) => {}
        }
        pause(patience);
    }
}

/// Of root's rights this keeps those over the network, and of the files what is open.
pub(crate) fn keep_to_the_network() -> io::Result<()> {
    const CAP_NET_ADMIN: u32 = 1 << 12;
    super::landlock::leave_files()?;
    super::spawn::keep_capabilities(CAP_NET_ADMIN)
}

/// The pid of the new process, or nothing in that one.
#[expect(clippy::disallowed_methods, reason = "with one thread, no call is unsafe in the child")]
fn fork() -> io::Result<Option<i32>> {
    // SAFETY: this process has one thread, so that nothing is in the middle of a change.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => Ok(Some(child.as_raw())),
        ForkResult::Child => Ok(None),
    }
}

/// Reads the clock of the hardware, which keeps UTC, into the system's.
pub(crate) fn clock_from_hardware() -> io::Result<()> {
    /// RTC_RD_TIME: _IOR('p', 9, struct rtc_time) of nine ints.
    const RTC_RD_TIME: libc::Ioctl = 0x8024_7009;
    let file = std::fs::File::open("/dev/rtc0")?;
    // SAFETY: rtc_time has the fields of the first nine of tm, which is longer; timegm and settimeofday only read.
    unsafe {
        let mut time: libc::tm = std::mem::zeroed();
        if libc::ioctl(file.as_raw_fd(), RTC_RD_TIME, &raw mut time) < 0 {
            return Err(io::Error::last_os_error());
        }
        let now = libc::timeval { tv_sec: libc::timegm(&raw mut time), tv_usec: 0 };
        if libc::settimeofday(&raw const now, std::ptr::null()) < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Waits for the kernel's random numbers to be unpredictable; whether they are.
pub(crate) fn await_entropy(patience: Duration) -> bool {
    use std::os::fd::AsFd as _;

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let Ok(file) = std::fs::File::open("/dev/random") else { return false };
    let mut fds = [PollFd::new(file.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX)).is_ok_and(|count| count > 0)
}

/// Waits a little for something that the kernel does not tell of.
pub(crate) fn pause(time: Duration) {
    use nix::poll::{PollTimeout, poll};
    let _ = poll(&mut [], PollTimeout::try_from(time).unwrap_or(PollTimeout::ZERO));
}

/// Ctrl-Alt-Del becomes SIGINT to us, and not a reset; the flag says whether one came.
pub(crate) fn watch_ctrl_alt_del() -> io::Result<Arc<AtomicBool>> {
    set_cad_enabled(false)?;
    let asked = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&asked);
    // SAFETY: the action stores to an atomic.
    unsafe { signal_hook_registry::register(libc::SIGINT, move || flag.store(true, Ordering::SeqCst))? };
    Ok(asked)
}

/// A press of this button becomes SIGTERM to us for as long as the file is open.
pub(crate) fn watch_power_button(device: &Path) -> io::Result<std::fs::File> {
    let file = std::fs::File::open(device)?;
    // SAFETY: numbers only; the descriptor is open.
    unsafe {
        let fd = file.as_raw_fd();
        if libc::fcntl(fd, libc::F_SETOWN, libc::getpid()) < 0
            || libc::fcntl(fd, F_SETSIG, libc::SIGTERM) < 0
            || libc::fcntl(fd, libc::F_SETFL, libc::O_ASYNC | libc::O_NONBLOCK) < 0
        {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(file)
}

/// The same on every Linux; the C library's header shows it to GNU programs only.
const F_SETSIG: libc::c_int = 10;

/// Sends a signal to every process but us.
pub(crate) fn signal_everyone(number: i32) {
    // SAFETY: no memory is passed. An error means that there is nobody.
    unsafe { libc::kill(-1, number) };
}

/// Ends the machine. Returns only where the kernel refuses.
pub(crate) fn end_machine(mode: RebootMode) -> io::Error {
    // SAFETY: sync has no failure.
    unsafe { libc::sync() };
    match reboot(mode) {
        Ok(never) => match never {},
        Err(error) => error.into(),
    }
}
