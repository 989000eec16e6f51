//! The control groups of listening sockets, as the kernel's socket diagnosis tells them (sock_diag(7)). It
//! needs no privilege, unlike seeing which process holds a socket of another user: a group is a unit or a
//! container, and that is nearly as good.
//!
//! A socket belongs to the group of the process that made it. The kernel tells groups of version 2, from 5.7
//! on; a kernel that tells none, or a sandbox without `AF_NETLINK`, leaves all unknown.

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with,
    sockopt::{Timeout, set_socket_timeout},
};
use std::{collections::HashMap, time::Duration};

/// The kernel answers at once; this is for one that does not.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);

/// Most bytes of one part of an answer; the kernel makes them of 8 to 32 KiB.
const PART_MAX: usize = 1 << 16;

/// Most parts of one answer: many more than listening sockets are looked at.
const PARTS_MAX: usize = 1024;

// linux/netlink.h, linux/sock_diag.h, linux/inet_diag.h, linux/tcp.h
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST_DUMP: u16 = 0x301;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const FAMILIES: [u8; 2] = [2, 10];
const TCP: u8 = 6;
const LISTENING: u32 = 1 << 10;
const CGROUP_ID: u16 = 21;
const HEADER_BYTES: usize = 16;
const REQUEST_BYTES: usize = 72;
const INODE_AT: usize = 68;
const MESSAGE_BYTES: usize = 72;

/// The group of each listening socket of the daemon's network namespace, by inode; empty where the kernel
/// does not tell.
pub(super) fn groups() -> HashMap<u64, u64> {
    let mut found = HashMap::new();
    for family in FAMILIES {
        // What was told before an error counts.
        let _ = ask(family, &mut found);
    }
    found
}

fn ask(family: u8, found: &mut HashMap<u64, u64>) -> rustix::io::Result<()> {
    let socket = socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        Some(netlink::SOCK_DIAG),
    )?;
    set_socket_timeout(&socket, Timeout::Recv, Some(ANSWER_LIMIT))?;
    send(&socket, &request(family), SendFlags::empty())?;
    let mut part = vec![0; PART_MAX];
    for _ in 0..PARTS_MAX {
        let (length, _) = recv(&socket, part.as_mut_slice(), RecvFlags::empty())?;
        if length == 0 || read(part.get(..length).unwrap_or_default(), found) {
            break;
        }
    }
    Ok(())
}

/// A header, then `struct inet_diag_req_v2`: family, protocol, no extensions, states, and any address.
fn request(family: u8) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(REQUEST_BYTES);
    bytes.extend((REQUEST_BYTES as u32).to_ne_bytes());
    bytes.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes.extend(NLM_F_REQUEST_DUMP.to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend([family, TCP, 0, 0]);
    bytes.extend(LISTENING.to_ne_bytes());
    bytes.resize(REQUEST_BYTES, 0);
    bytes
}

/// Reads one part of an answer. True at its end.
fn read(mut part: &[u8], found: &mut HashMap<u64, u64>) -> bool {
    while let (Some(length), Some(kind)) = (u32_at(part, 0), u16_at(part, 4)) {
        let length = length as usize;
        if kind == NLMSG_DONE || kind == NLMSG_ERROR || length < HEADER_BYTES {
            return true;
        }
        let Some(message) = part.get(HEADER_BYTES..length) else { return true };
        if kind == SOCK_DIAG_BY_FAMILY
            && let Some(inode) = u32_at(message, INODE_AT)
            && let Some(group) = group(message.get(MESSAGE_BYTES..).unwrap_or_default())
        {
            found.insert(inode.into(), group);
        }
        part = part.get(aligned(length)..).unwrap_or_default();
    }
    false
}

/// The group among the attributes behind a message.
fn group(mut attributes: &[u8]) -> Option<u64> {
    loop {
        let length = usize::from(u16_at(attributes, 0)?);
        if u16_at(attributes, 2)? == CGROUP_ID {
            return attributes.get(4..)?.first_chunk().map(|bytes| u64::from_ne_bytes(*bytes));
        }
        if length < 4 {
            return None;
        }
        attributes = attributes.get(aligned(length)..)?;
    }
}

const fn aligned(length: usize) -> usize {
    length.saturating_add(3) & !3
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|bytes| u16::from_ne_bytes(*bytes))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, body: &[u8]) -> Vec<u8> {
        let mut bytes = ((HEADER_BYTES + body.len()) as u32).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 10]);
        bytes.extend(body);
        bytes.resize(aligned(bytes.len()), 0);
        bytes
    }

    fn socket(inode: u32, attributes: &[u8]) -> Vec<u8> {
        let mut body = vec![0; INODE_AT];
        body.extend(inode.to_ne_bytes());
        body.extend(attributes);
        message(SOCK_DIAG_BY_FAMILY, &body)
    }

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = ((4 + value.len()) as u16).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(aligned(bytes.len()), 0);
        bytes
    }

    #[test]
    fn groups_are_read_among_other_attributes_and_over_several_parts() {
        let of = |group: u64| attribute(CGROUP_ID, &group.to_ne_bytes());
        let mut part = socket(700, &[attribute(8, &[1]), attribute(15, &[0; 4]), of(25)].concat());
        part.extend(socket(701, &attribute(8, &[0])));
        let mut found = HashMap::new();
        assert!(!read(&part, &mut found), "more may come");
        let mut last = socket(702, &of(1 << 40));
        last.extend(message(NLMSG_DONE, &[0; 4]));
        assert!(read(&last, &mut found));
        assert_eq!(found, HashMap::from([(700, 25), (702, 1 << 40)]));
    }

    #[test]
    fn answers_that_are_cut_or_absurd_end_the_reading() {
        let whole = socket(700, &attribute(CGROUP_ID, &25u64.to_ne_bytes()));
        for length in 0..whole.len() {
            let mut found = HashMap::new();
            read(&whole[..length], &mut found);
            assert_eq!(found, HashMap::new(), "cut at {length}");
        }
        let mut found = HashMap::new();
        assert!(read(&[0; 64], &mut found), "a length of nothing would never end");
        assert!(read(&message(NLMSG_ERROR, &[0; 4]), &mut found));
        read(&socket(700, &[0; 64]), &mut found);
        assert_eq!(found, HashMap::new());
    }
}
