//! Which process is behind a server's address.

use super::{Resident, Seat};
use crate::snapshot::{Listener, ProcessTable};
use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
};

/// What is known of the processes behind one server's address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Home {
    /// The address is on this host.
    pub(super) local: bool,
    /// The sockets that it leads to, by inode.
    pub(super) sockets: BTreeSet<u64>,
    /// The processes that hold them.
    pub(super) holders: BTreeSet<u32>,
    /// Another network namespace whose sockets lie there, but not their holders.
    pub(super) network: Option<u64>,
    /// Who opened a socket in the daemon's own namespace whose holder cannot be seen.
    pub(super) user: Option<u32>,
    /// The control group that such a socket was opened in.
    pub(super) group: Option<u64>,
    /// The address leads into a container that no process on a GPU is in.
    pub(super) elsewhere: bool,
    /// It is the daemon's own process, whose children have nothing to do with it.
    pub(super) inside: bool,
}

impl Home {
    /// Its process can be seen, or is known to be where no GPU is used.
    pub(super) fn is_seen(&self) -> bool {
        !self.holders.is_empty() || self.elsewhere
    }
}

/// Finds a server's home.
pub(super) fn home(resident: &Resident, table: &ProcessTable, own_pid: u32) -> Home {
    match &resident.seat {
        Seat::Inside => Home {
            local: true,
            holders: BTreeSet::from([own_pid]),
            inside: true,
            ..Home::default()
        },
        Seat::At { addresses, port } => {
            let mut home = Home::default();
            for address in addresses {
                lead(&mut home, table, address.to_canonical(), *port);
            }
            home
        }
    }
}

/// Follows one address, through a forwarder into its container.
fn lead(home: &mut Home, table: &ProcessTable, address: IpAddr, port: u16) {
    let own = address.is_loopback()
        || address.is_unspecified()
        || table.networks.iter().any(|one| one.id.is_none() && one.addresses.contains(&address));
    if !own {
        enter(home, table, address, port);
        return;
    }
    home.local = true;
    for listener in listeners(table, None, address, port) {
        home.sockets.insert(listener.inode);
        match listener.forward {
            Some(to) => {
                if !enter(home, table, to.ip().to_canonical(), to.port()) {
                    home.elsewhere = true;
                }
            }
            None if listener.holders.is_empty() => {
                home.user = Some(listener.user);
                home.group = listener.group;
            }
            None => home.holders.extend(&listener.holders),
        }
    }
}

/// Looks for an address among the containers that GPU processes are in. False if it is in none.
fn enter(home: &mut Home, table: &ProcessTable, address: IpAddr, port: u16) -> bool {
    let of = |one: &&crate::snapshot::Network| one.id.is_some() && one.addresses.contains(&address);
    let mut entered = false;
    for network in table.networks.iter().filter(of) {
        entered = true;
        home.local = true;
        for listener in listeners(table, network.id, address, port) {
            home.sockets.insert(listener.inode);
            if listener.holders.is_empty() {
                home.network = network.id;
            }
            home.holders.extend(&listener.holders);
        }
    }
    entered
}

/// The sockets of a namespace that an address leads to. Where IPv4 has a socket of its own there, the kernel
/// lets one for all of IPv6 at the same port be for IPv6 alone; it may be another user's.
fn listeners(
    table: &ProcessTable,
    network: Option<u64>,
    address: IpAddr,
    port: u16,
) -> impl Iterator<Item = &Listener> {
    let takes =
        move |one: &&Listener| one.network == network && one.port == port && takes(one, address);
    let has_own = table.listeners.iter().filter(takes).any(|one| one.address.is_ipv4());
    table.listeners.iter().filter(takes).filter(move |one| !has_own || one.address.is_ipv4())
}

/// Does a socket take connections to this address? A server's address may be unspecified, too, and then
/// leads to loopback. A socket for all of IPv6 takes IPv4 as well, unless it was told not to.
fn takes(listener: &Listener, address: IpAddr) -> bool {
    let address = if address.is_unspecified() { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { address };
    match listener.address {
        bound if bound.is_unspecified() => bound.is_ipv6() || address.is_ipv4(),
        bound => bound == address,
    }
}
