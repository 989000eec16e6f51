//! The service manager: what it is told (ready, reloading, stopping, alive) and which sockets it
//! hands over.
//!
//! Decides nothing. Without a service manager every call does nothing. The environment is only read.

use sd_notify::NotifyState;
use std::{
    env,
    ffi::OsStr,
    io,
    net::TcpListener,
    os::{
        fd::{FromRawFd, OwnedFd, RawFd},
        linux::net::SocketAddrExt,
        unix::{
            ffi::OsStrExt,
            net::{SocketAddr, UnixDatagram, UnixListener},
        },
    },
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// Longest a notice may hold up its sender; the manager's buffer is full only when it hangs itself.
const SEND_LIMIT: Duration = Duration::from_millis(500);

/// Longest status line: `systemctl status` shows one line.
const STATUS_MAX_CHARS: usize = 240;

/// Tells the service manager how the daemon is. Cheap to clone; all clones share one socket.
///
/// A notice that cannot be sent is logged and dropped: the daemon serves all the same, and the
/// manager's own time limits tell the operator.
#[derive(Clone, Debug, Default)]
pub struct Notifier {
    socket: Option<Arc<UnixDatagram>>,
    watchdog: Option<Duration>,
}

/// The sockets that the service manager holds for us, by the name in its `FileDescriptorName=`.
#[derive(Debug, Default)]
pub struct Listeners {
    /// `data`: where callers connect.
    pub data: Option<TcpListener>,
    /// `admin`: metrics and health.
    pub admin: Option<TcpListener>,
    /// `control`: the operator's socket.
    pub control: Option<UnixListener>,
}

/// The unit hands over sockets that do not fit. Nothing was served; mend the unit and start again.
#[derive(Debug, thiserror::Error)]
pub enum ListenersError {
    /// The environment that should tell about the sockets is broken, or the sockets were taken before.
    #[error("cannot take the service manager's sockets")]
    Environment(#[source] io::Error),
    /// A socket has a name that means nothing here.
    #[error("a socket is named `{0}`; set FileDescriptorName= to data, admin or control")]
    UnknownName(String),
    /// Two sockets have one name.
    #[error("two sockets are named `{0}`; hand over one of each")]
    Twice(String),
    /// A socket is of the wrong kind, or does not listen.
    #[error("the socket `{name}` is not {wanted}; see ListenStream= in its unit")]
    WrongKind {
        /// Its name.
        name: String,
        /// What it should be.
        wanted: &'static str,
    },
    /// The system refused to prepare a socket.
    #[error("cannot prepare the socket `{name}`")]
    Prepare {
        /// Its name.
        name: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

// === impl Notifier ===

impl Notifier {
    /// The service manager of this process, if it was started by one that wants notices.
    pub fn from_environment() -> Self {
        // Half the limit, as the manager's manual recommends: one late beat is forgiven.
        let watchdog = sd_notify::watchdog_enabled().map(|limit| limit / 2);
        let Some(path) = env::var_os("NOTIFY_SOCKET") else { return Self::default() };
        match Self::connect(&path, watchdog) {
            Ok(notifier) => notifier,
            Err(error) => {
                tracing::warn!(%error, "cannot reach the service manager; it will not be notified");
                Self::default()
            }
        }
    }

    /// A service manager that listens at `path`; `watchdog` is the time between two beats. For tests
    /// and for managers other than systemd.
    ///
    /// # Errors
    /// Nobody listens there.
    pub fn at(path: &Path, watchdog: Option<Duration>) -> io::Result<Self> {
        Self::connect(path.as_os_str(), watchdog)
    }

    fn connect(path: &OsStr, watchdog: Option<Duration>) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        // A leading @ names an abstract socket, which has no file.
        match path.as_bytes().strip_prefix(b"@") {
            Some(name) => socket.connect_addr(&SocketAddr::from_abstract_name(name)?)?,
            None => socket.connect(path)?,
        }
        socket.set_write_timeout(Some(SEND_LIMIT))?;
        Ok(Self { socket: Some(Arc::new(socket)), watchdog })
    }

    /// The daemon serves (again, after a reload).
    pub fn ready(&self, status: &str) {
        self.send(&[NotifyState::Ready, NotifyState::Status(&one_line(status))]);
    }

    /// The daemon reads its configuration anew; [`Notifier::ready`] must follow.
    pub fn reloading(&self) {
        match NotifyState::monotonic_usec_now() {
            // The stamp lets the manager tell this reload's `READY` from an earlier one.
            Ok(stamp) => self.send(&[NotifyState::Reloading, stamp]),
            Err(error) => tracing::warn!(%error, "cannot read the clock; reload not announced"),
        }
    }

    /// The daemon takes nothing new and lets streams finish.
    pub fn stopping(&self, status: &str) {
        self.send(&[NotifyState::Stopping, NotifyState::Status(&one_line(status))]);
    }

    /// One line for people who ask `systemctl status`.
    pub fn status(&self, text: &str) {
        self.send(&[NotifyState::Status(&one_line(text))]);
    }

    /// Time between two beats of [`Notifier::watchdog`]; `None` when nobody waits for them.
    pub fn watchdog_interval(&self) -> Option<Duration> {
        self.socket.as_ref().and(self.watchdog)
    }

    /// The daemon is alive. Send it from where a hang would show, not from a thread of its own.
    pub fn watchdog(&self) {
        self.send(&[NotifyState::Watchdog]);
    }

    fn send(&self, states: &[NotifyState<'_>]) {
        let Some(socket) = &self.socket else { return };
        let lines: Vec<String> = states.iter().map(ToString::to_string).collect();
        if let Err(error) = socket.send(lines.join("\n").as_bytes()) {
            tracing::warn!(%error, "cannot notify the service manager");
        }
    }
}

/// A line break in a status would begin another notice.
fn one_line(text: &str) -> String {
    let visible = |letter: char| if letter.is_control() { ' ' } else { letter };
    text.chars().take(STATUS_MAX_CHARS).map(visible).collect()
}

// === impl Listeners ===

impl Listeners {
    /// Takes the sockets that the service manager handed to this process; none is no fault. They are
    /// non-blocking and closed on exec. Can be called once: a second call finds them taken.
    ///
    /// # Errors
    /// The unit hands over sockets that do not fit. All of them are closed then.
    pub fn from_environment() -> Result<Self, ListenersError> {
        // Guards the descriptors against being owned twice.
        static TAKEN: AtomicBool = AtomicBool::new(false);
        let handed = sd_notify::listen_fds_with_names().map_err(ListenersError::Environment)?;
        if handed.len() == 0 {
            return Ok(Self::default());
        }
        if TAKEN.swap(true, Ordering::SeqCst) {
            let error = io::Error::other("they were taken before");
            return Err(ListenersError::Environment(error));
        }
        // All are owned before any is judged, so that all are closed when one does not fit.
        let owned: Vec<(OwnedFd, String)> =
            handed.map(|(descriptor, name)| (own(descriptor), name)).collect();
        Self::sort(owned)
    }

    fn sort(handed: Vec<(OwnedFd, String)>) -> Result<Self, ListenersError> {
        let mut listeners = Self::default();
        for (socket, name) in handed {
            let twice = match name.as_str() {
                "data" => listeners.data.replace(tcp(socket, &name)?).is_some(),
                "admin" => listeners.admin.replace(tcp(socket, &name)?).is_some(),
                "control" => listeners.control.replace(unix(socket, &name)?).is_some(),
                _ => return Err(ListenersError::UnknownName(name)),
            };
            if twice {
                return Err(ListenersError::Twice(name));
            }
        }
        Ok(listeners)
    }
}

/// Owns a descriptor that the service manager passed at start.
#[expect(unsafe_code, reason = "a number becomes a descriptor nowhere else")]
fn own(descriptor: RawFd) -> OwnedFd {
    // SAFETY: `listen_fds_with_names` has just set close-on-exec on this descriptor, so it is open; the
    // manager passed it to this very process (LISTEN_PID), and `TAKEN` lets nobody own it twice.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}

fn tcp(socket: OwnedFd, name: &str) -> Result<TcpListener, ListenersError> {
    use rustix::net::AddressFamily;
    if !listens(&socket, &[AddressFamily::INET, AddressFamily::INET6]) {
        let wanted = "a listening TCP socket";
        return Err(ListenersError::WrongKind { name: name.to_owned(), wanted });
    }
    let listener = TcpListener::from(socket);
    let prepared = listener.set_nonblocking(true);
    prepared.map_err(|source| ListenersError::Prepare { name: name.to_owned(), source })?;
    Ok(listener)
}

fn unix(socket: OwnedFd, name: &str) -> Result<UnixListener, ListenersError> {
    if !listens(&socket, &[rustix::net::AddressFamily::UNIX]) {
        let wanted = "a listening Unix stream socket";
        return Err(ListenersError::WrongKind { name: name.to_owned(), wanted });
    }
    let listener = UnixListener::from(socket);
    let prepared = listener.set_nonblocking(true);
    prepared.map_err(|source| ListenersError::Prepare { name: name.to_owned(), source })?;
    Ok(listener)
}

fn listens(socket: &OwnedFd, families: &[rustix::net::AddressFamily]) -> bool {
    use rustix::net::{SocketType, sockopt};
    sockopt::socket_domain(socket).is_ok_and(|family| families.contains(&family))
        && sockopt::socket_type(socket) == Ok(SocketType::STREAM)
        && sockopt::socket_acceptconn(socket) == Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;

    /// A service manager that reads notices.
    struct Manager {
        socket: UnixDatagram,
        folder: tempfile::TempDir,
    }

    impl Manager {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let socket = UnixDatagram::bind(folder.path().join("notify")).unwrap();
            socket.set_nonblocking(true).unwrap();
            Self { socket, folder }
        }

        fn notifier(&self, watchdog: Option<Duration>) -> Notifier {
            Notifier::at(&self.folder.path().join("notify"), watchdog).unwrap()
        }

        /// The next notice, in lines. A datagram is there once `send` returned.
        fn next(&self) -> Vec<String> {
            let mut notice = [0; 1024];
            let length = self.socket.recv(&mut notice).unwrap();
            let text = std::str::from_utf8(&notice[..length]).unwrap();
            text.lines().map(str::to_owned).collect()
        }
    }

    #[test]
    fn each_notice_is_one_datagram_the_manager_understands() {
        let manager = Manager::new();
        let notifier = manager.notifier(None);
        notifier.ready("serving 2 models");
        assert_eq!(manager.next(), ["READY=1", "STATUS=serving 2 models"]);
        notifier.clone().status("3 running");
        assert_eq!(manager.next(), ["STATUS=3 running"]);
        notifier.watchdog();
        assert_eq!(manager.next(), ["WATCHDOG=1"]);
        notifier.stopping("4 streams finish");
        assert_eq!(manager.next(), ["STOPPING=1", "STATUS=4 streams finish"]);
    }

    #[test]
    fn a_reload_carries_the_monotonic_clock() {
        let clock = || {
            let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
            i128::from(now.tv_sec) * 1_000_000 + i128::from(now.tv_nsec) / 1_000
        };
        let manager = Manager::new();
        let before = clock();
        manager.notifier(None).reloading();
        let after = clock();
        let notice = manager.next();
        assert_eq!(notice[0], "RELOADING=1");
        let stamp: i128 = notice[1].strip_prefix("MONOTONIC_USEC=").unwrap().parse().unwrap();
        assert!((before..=after).contains(&stamp), "{before} <= {stamp} <= {after}");
    }

    #[test]
    fn a_status_cannot_smuggle_in_another_notice() {
        let manager = Manager::new();
        manager.notifier(None).status("bad server\nSTOPPING=1\r");
        assert_eq!(manager.next(), ["STATUS=bad server STOPPING=1 "]);
        manager.notifier(None).status(&"é".repeat(10_000));
        assert_eq!(manager.next()[0].chars().count(), "STATUS=".len() + STATUS_MAX_CHARS);
    }

    #[test]
    fn without_a_manager_nothing_happens_and_no_beat_is_due() {
        let notifier = Notifier::default();
        notifier.ready("x");
        notifier.watchdog();
        assert_eq!(notifier.watchdog_interval(), None);
        assert!(Notifier::at(Path::new("/nonexistent/notify"), None).is_err());
    }

    #[test]
    fn a_manager_that_went_away_is_no_reason_to_fail() {
        let manager = Manager::new();
        let notifier = manager.notifier(Some(Duration::from_secs(5)));
        assert_eq!(notifier.watchdog_interval(), Some(Duration::from_secs(5)));
        drop(manager);
        notifier.watchdog();
    }

    #[test]
    fn abstract_sockets_are_reached() {
        let name = format!("berthd-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let socket = UnixDatagram::bind_addr(&address).unwrap();
        Notifier::at(Path::new(&format!("@{name}")), None).unwrap().watchdog();
        let mut notice = [0; 64];
        let length = socket.recv(&mut notice).unwrap();
        assert_eq!(&notice[..length], b"WATCHDOG=1");
    }

    fn tcp_socket() -> OwnedFd {
        TcpListener::bind("127.0.0.1:0").unwrap().into()
    }

    #[test]
    fn sockets_are_sorted_by_name_and_accept() {
        let folder = tempfile::tempdir().unwrap();
        let control = UnixListener::bind(folder.path().join("s")).unwrap();
        let handed =
            vec![(OwnedFd::from(control), "control".to_owned()), (tcp_socket(), "data".to_owned())];
        let listeners = Listeners::sort(handed).unwrap();
        assert!(listeners.admin.is_none() && listeners.control.is_some());
        let data = listeners.data.unwrap();
        let would_block = data.accept().unwrap_err();
        assert_eq!(would_block.kind(), io::ErrorKind::WouldBlock);
        let caller = std::net::TcpStream::connect(data.local_addr().unwrap()).unwrap();
        assert_eq!(data.accept().unwrap().1, caller.local_addr().unwrap());
    }

    /// The part of the next test that runs as a service, in a process of its own.
    #[test]
    #[ignore = "run by a_process_takes_what_its_environment_names"]
    fn as_a_service() {
        if env::var_os("LISTEN_FDS").is_none() {
            eprintln!("SKIPPED: not started as a service");
            return;
        }
        let notifier = Notifier::from_environment();
        assert_eq!(notifier.watchdog_interval(), Some(Duration::from_secs(5)));
        let listeners = Listeners::from_environment().unwrap();
        assert!(Listeners::from_environment().is_err(), "nothing is owned twice");
        let (_, caller) = listeners.data.unwrap().accept().unwrap();
        notifier.ready(&format!("called by {caller}"));
    }

    #[test]
    fn a_process_takes_what_its_environment_names() {
        let manager = Manager::new();
        let held = TcpListener::bind("127.0.0.1:0").unwrap();
        let caller = std::net::TcpStream::connect(held.local_addr().unwrap()).unwrap();
        // As systemd does it: the socket is descriptor 3, the names are in the environment, and the
        // process that is meant is the one that reads them (`exec` keeps the shell's id).
        let script = "exec 3<&0 && export LISTEN_PID=$$ WATCHDOG_PID=$$ && exec \"$@\"";
        let this = env::current_exe().unwrap();
        let service = std::process::Command::new("sh")
            .args(["-c", script, "sh"])
            .arg(this)
            .args(["--ignored", "--exact", "systemd::tests::as_a_service"])
            .env("LISTEN_FDS", "1")
            .env("LISTEN_FDNAMES", "data")
            .env("WATCHDOG_USEC", "10000000")
            .env("NOTIFY_SOCKET", manager.folder.path().join("notify"))
            .stdin(OwnedFd::from(held))
            .output()
            .unwrap();
        assert!(service.status.success(), "{}", String::from_utf8_lossy(&service.stdout));
        let called = format!("STATUS=called by {}", caller.local_addr().unwrap());
        assert_eq!(manager.next(), ["READY=1", called.as_str()]);
    }

    #[test]
    fn sockets_that_do_not_fit_are_refused_with_the_setting_to_mend() {
        let folder = tempfile::tempdir().unwrap();
        let unix = UnixListener::bind(folder.path().join("s")).unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let named = |socket: OwnedFd, name: &str| (socket, name.to_owned());
        for (handed, told) in [
            (vec![named(tcp_socket(), "http")], "FileDescriptorName="),
            (vec![named(tcp_socket(), "data"), named(tcp_socket(), "data")], "two sockets"),
            (vec![named(udp.into(), "admin")], "not a listening TCP socket"),
            (vec![named(unix.into(), "data")], "not a listening TCP socket"),
            (vec![named(tcp_socket(), "control")], "not a listening Unix stream socket"),
        ] {
            let refused = Listeners::sort(handed).unwrap_err().to_string();
            assert!(refused.contains(told), "{refused}");
        }
    }
}
