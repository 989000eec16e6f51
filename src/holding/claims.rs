//! Whose a process on a GPU is: the nearest listener's in its tree, else the one's whose container or unit
//! it runs in.

use super::{How, homes::Home};
use crate::{
    ids::ServerId,
    snapshot::{Process, ProcessTable},
};
use std::collections::BTreeSet;

/// Whose a process is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Claim {
    /// One server's.
    One(ServerId, How),
    /// One of several, and nothing tells which.
    Several(Vec<ServerId>),
    /// No server's.
    Nobody,
}

/// How near a server's listener is: steps up to the ancestor that both have, and whether that is the
/// listener itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Nearness {
    up: usize,
    beside: bool,
}

/// Whose a process is. `on_gpus` are all processes on GPUs.
pub(super) fn claim(
    process: &Process,
    table: &ProcessTable,
    homes: &[(ServerId, Home)],
    on_gpus: &BTreeSet<u32>,
) -> Claim {
    let near = homes.iter().filter_map(|(id, home)| {
        let nearness = nearness(process, table, home)?;
        Some((nearness, id))
    });
    let near: Vec<(Nearness, &ServerId)> = near.collect();
    if let Some(least) = near.iter().map(|(nearness, _)| *nearness).min() {
        let how = if least.beside { How::Group } else { How::Socket };
        let nearest = near.iter().filter(|(nearness, _)| *nearness == least);
        return of(nearest.map(|(_, id)| (*id).clone()).collect(), how);
    }
    // The holders are not to be seen, but the namespace is, and it is a container's own.
    let in_network = homes.iter().filter(|(_, home)| {
        home.holders.is_empty() && home.network.is_some() && home.network == process.network
    });
    let found = of(in_network.map(|(id, _)| id.clone()).collect(), How::Group);
    if found != Claim::Nobody {
        return found;
    }
    let in_group = homes.iter().filter(|(_, home)| {
        home.holders.is_empty() && home.group.is_some() && home.group == process.group
    });
    // A group is a container or a service of the host; a login session is neither.
    if are_one_service(process, process) {
        let found = of(in_group.map(|(id, _)| id.clone()).collect(), How::Group);
        if found != Claim::Nobody {
            return found;
        }
    }
    by_user(process, table, homes, on_gpus)
}

fn of(mut servers: Vec<ServerId>, how: How) -> Claim {
    servers.sort();
    servers.dedup();
    match servers.len() {
        0 => Claim::Nobody,
        1 => servers.pop().map_or(Claim::Nobody, |one| Claim::One(one, how)),
        _ => Claim::Several(servers),
    }
}

fn nearness(process: &Process, table: &ProcessTable, home: &Home) -> Option<Nearness> {
    if home.inside {
        return home.holders.contains(&process.pid).then_some(Nearness { up: 0, beside: false });
    }
    let line: Vec<u32> = table.line(process.pid).map(|one| one.pid).collect();
    let one = |holder: &u32| {
        if let Some(up) = line.iter().position(|pid| pid == holder) {
            return Some(Nearness { up, beside: false });
        }
        let holder = table.processes.get(holder)?;
        if !are_one_service(process, holder) {
            return None;
        }
        let others: Vec<u32> = table.line(holder.pid).map(|one| one.pid).collect();
        // A process that was put into the container from outside has no ancestor there.
        let up = line.iter().position(|pid| others.contains(pid)).unwrap_or(usize::MAX);
        Some(Nearness { up, beside: true })
    };
    home.holders.iter().filter_map(one).min()
}

/// Do both belong to one container, or to one service of the host? A login session is neither: what a
/// person started there has nothing in common but the person.
pub(super) fn are_one_service(one: &Process, other: &Process) -> bool {
    let group = one.container.is_some()
        || one
            .unit
            .as_ref()
            .is_some_and(|unit| unit.ends_with(".service") && !unit.starts_with("user@"));
    group && one.is_beside(other)
}

/// What the kernel shows for a user that has no name in the daemon's user namespace: any user at all.
const NOBODY: u32 = 65_534;

/// Where no holder can be seen, a socket still tells who opened it. A service with a user of its own is
/// known by that, if all that the user has on GPUs is that service, and if only one server's socket is
/// the user's. Root's is everybody's.
fn by_user(
    process: &Process,
    table: &ProcessTable,
    homes: &[(ServerId, Home)],
    on_gpus: &BTreeSet<u32>,
) -> Claim {
    let named = |user: u32| user != 0 && user != NOBODY;
    let unseen = |home: &Home| home.holders.is_empty() && home.user.is_some_and(named);
    let mut servers = homes
        .iter()
        .filter(|(_, home)| unseen(home) && home.user == process.user)
        .map(|(id, _)| id.clone());
    let (Some(server), None) = (servers.next(), servers.next()) else { return Claim::Nobody };
    let mut of_user = on_gpus
        .iter()
        .filter_map(|pid| table.processes.get(pid))
        .filter(|other| other.user == process.user);
    if of_user.all(|other| are_one_service(process, other)) {
        Claim::One(server, How::Group)
    } else {
        Claim::Nobody
    }
}
