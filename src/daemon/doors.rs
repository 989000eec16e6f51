//! The daemon's sockets: bound early, so that a bad address fails before a model loads.

use super::StartError;
use crate::report::Addresses;
use std::{
    io,
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};
use tokio::net::{TcpListener, UnixListener};

pub(super) struct Doors {
    pub(super) data: TcpListener,
    pub(super) admin: TcpListener,
    pub(super) control: UnixListener,
    pub(super) socket: PathBuf,
}

impl Doors {
    pub(super) fn addresses(&self) -> Addresses {
        let text = |address: io::Result<SocketAddr>| {
            address.map_or_else(|_| "-".to_owned(), |address| address.to_string())
        };
        Addresses { data: text(self.data.local_addr()), admin: text(self.admin.local_addr()) }
    }
}

pub(super) async fn bind(
    address: SocketAddr,
    given: Option<std::net::TcpListener>,
    key: &'static str,
) -> Result<TcpListener, StartError> {
    let listener = match given {
        Some(listener) => TcpListener::from_std(listener),
        None => TcpListener::bind(address).await,
    };
    listener.map_err(|source| StartError::Bind { address: address.to_string(), key, source })
}

/// Binds the control socket. One that a dead daemon left behind is replaced; one that answers is not.
pub(super) async fn bind_socket(
    path: &Path,
    given: Option<std::os::unix::net::UnixListener>,
) -> Result<UnixListener, StartError> {
    let failed = |source: io::Error| StartError::Bind {
        address: path.display().to_string(),
        key: "listen.socket",
        source,
    };
    if let Some(listener) = given {
        return UnixListener::from_std(listener).map_err(failed);
    }
    if tokio::net::UnixStream::connect(path).await.is_ok() {
        return Err(StartError::Running(path.to_owned()));
    }
    match std::fs::symlink_metadata(path) {
        Ok(meta) => {
            use std::os::unix::fs::FileTypeExt;
            if !meta.file_type().is_socket() {
                let why = "there is a file that is not a socket; choose another path or remove it";
                return Err(failed(io::Error::new(io::ErrorKind::AlreadyExists, why)));
            }
            std::fs::remove_file(path).map_err(failed)?;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    // Whoever may read status may also drain: the owner and the group.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660)).map_err(failed)?;
    Ok(listener)
}
