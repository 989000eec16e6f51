//! Listening sockets and interfaces of a network namespace, as the files below `/proc/PID/net` have them.

use std::{
    io::BufRead,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

/// A listening socket as its namespace's list has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Socket {
    pub(super) address: IpAddr,
    pub(super) port: u16,
    pub(super) user: u32,
    pub(super) inode: u64,
}

/// The state of a listening socket (`TCP_LISTEN`).
const LISTENING: &str = "0A";

/// Longest line of a list of sockets is about 180 bytes; a longer one is no such list.
const LINE_MAX: usize = 1024;

/// Reads `net/tcp` or `net/tcp6`. The kernel lists listening sockets first (`tcp_seq_next` walks them
/// before all others), so on a host with many connections only the first lines are asked for.
pub(super) fn listening(file: impl BufRead, most: usize) -> Vec<Socket> {
    let mut found = Vec::new();
    for line in file.lines().skip(1) {
        let Ok(line) = line else { break };
        match socket(&line) {
            Some((LISTENING, socket)) if found.len() < most && line.len() <= LINE_MAX => {
                found.push(socket);
            }
            _ => break,
        }
    }
    found
}

fn socket(line: &str) -> Option<(&str, Socket)> {
    let mut fields = line.split_ascii_whitespace();
    let local = fields.nth(1)?;
    let state = fields.nth(1)?;
    let user = fields.nth(3)?.parse().ok()?;
    let inode = fields.nth(1)?.parse().ok()?;
    let (address, port) = local.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    Some((state, Socket { address: address_of(address)?, port, user, inode }))
}

/// Addresses are written as 32-bit words in the host's own byte order.
fn address_of(hex: &str) -> Option<IpAddr> {
    let word = |word: &str| u32::from_str_radix(word, 16).ok().map(u32::to_ne_bytes);
    if hex.len() == 8 {
        return word(hex).map(|bytes| IpAddr::V4(Ipv4Addr::from(bytes)));
    }
    let mut bytes = Vec::with_capacity(16);
    for at in [0, 8, 16, 24] {
        bytes.extend(word(hex.get(at..at + 8)?)?);
    }
    let all: [u8; 16] = bytes.try_into().ok()?;
    (hex.len() == 32).then(|| IpAddr::V6(Ipv6Addr::from(all)).to_canonical())
}

/// Most addresses of one namespace that are kept.
const ADDRESSES_MAX: usize = 256;

/// Reads `net/fib_trie` and `net/if_inet6`: the addresses of a namespace's interfaces, loopback's left out.
pub(super) fn addresses(fib_trie: &str, if_inet6: &str) -> Vec<IpAddr> {
    let mut found: Vec<IpAddr> = Vec::new();
    let mut add = |address: IpAddr| {
        if !address.is_loopback() && !found.contains(&address) && found.len() < ADDRESSES_MAX {
            found.push(address);
        }
    };
    let mut leaf = None;
    for line in fib_trie.lines() {
        let line = line.trim();
        if let Some(address) = line.strip_prefix("|-- ") {
            leaf = address.parse().ok();
        } else if line == "/32 host LOCAL"
            && let Some(address) = leaf
        {
            add(IpAddr::V4(address));
        }
    }
    for line in if_inet6.lines() {
        let hex = line.split_ascii_whitespace().next().unwrap_or_default();
        if let Ok(bits) = u128::from_str_radix(hex, 16)
            && hex.len() == 32
        {
            add(IpAddr::V6(Ipv6Addr::from(bits)));
        }
    }
    found
}

/// Where Docker's forwarder of one published port carries connections to, by its arguments
/// (`docker-proxy -proto tcp -host-ip .. -host-port .. -container-ip .. -container-port ..`), and the
/// host's port.
pub(super) fn forwarded(arguments: &[u8]) -> Option<(u16, SocketAddr)> {
    let mut words =
        arguments.split(|byte| *byte == 0).filter_map(|word| std::str::from_utf8(word).ok());
    let (mut proto, mut port, mut to_address, mut to_port) = ("tcp", None, None, None);
    while let Some(word) = words.next() {
        let into = word.trim_start_matches('-');
        let (name, value) = match into.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (into, None),
        };
        if !matches!(name, "proto" | "host-port" | "container-ip" | "container-port") {
            continue;
        }
        let value = value.or_else(|| words.next())?;
        match name {
            "proto" => proto = value,
            "host-port" => port = value.parse().ok(),
            "container-ip" => to_address = value.parse::<IpAddr>().ok(),
            _ => to_port = value.parse().ok(),
        }
    }
    (proto == "tcp").then_some(())?;
    Some((port?, SocketAddr::new(to_address?, to_port?)))
}

/// The inode that an entry of `/proc/PID/fd` names, if it is a socket: `socket:[4711]`.
pub(super) fn inode(link: &str) -> Option<u64> {
    link.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TCP: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F40 00000000:0000 0A 00000000:00000000 00:00000000 00000000   998        0 41001 1 0 100 0 0 10 0
   1: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 41002 1 0 100 0 0 10 0
   2: 0100007F:1F40 0100007F:D1A0 01 00000000:00000000 00:00000000 00000000   998        0 41003 1 0 20 4 30 10 -1
   3: 0100007F:1F41 00000000:0000 0A 00000000:00000000 00:00000000 00000000   998        0 41004 1 0 100 0 0 10 0
";
    const TCP6: &str = "  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000000000000000000000000000:1F90 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 51001 1 0 100 0 0 10 0
   1: 00000000000000000000000001000000:1F91 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 51002 1 0 100 0 0 10 0
   2: 0000000000000000FFFF00000100007F:1F92 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 51003 1 0 100 0 0 10 0
";

    #[cfg(target_endian = "little")]
    #[test]
    fn listening_sockets_are_read_and_no_line_behind_them() {
        let socket = |address: &str, port, user, inode| Socket {
            address: address.parse().unwrap(),
            port,
            user,
            inode,
        };
        let read = listening(TCP.as_bytes(), 9);
        assert_eq!(read, [socket("127.0.0.1", 8000, 998, 41001), socket("0.0.0.0", 22, 0, 41002)]);
        let six = listening(TCP6.as_bytes(), 9);
        let wanted = [
            socket("::", 8080, 1000, 51001),
            socket("::1", 8081, 1000, 51002),
            socket("127.0.0.1", 8082, 1000, 51003),
        ];
        assert_eq!(six, wanted);
        assert_eq!(listening(TCP.as_bytes(), 1).len(), 1, "no more than asked for");
        assert_eq!(listening(&b"x\nnonsense\n"[..], 9), []);
    }

    #[test]
    fn addresses_of_interfaces_are_told_from_networks_and_broadcasts() {
        let trie = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 0.0.0.0\n        /0 universe UNICAST\n\
            Local:\n  +-- 127.0.0.0/8 2 0 2\n     |-- 127.0.0.1\n        /32 host LOCAL\n\
            \x20    +-- 172.17.0.0/16 2 0 2\n        |-- 172.17.0.0\n           /16 link UNICAST\n\
            \x20       |-- 172.17.0.2\n           /32 host LOCAL\n        |-- 172.17.255.255\n           /32 link BROADCAST\n\
            Local:\n     |-- 172.17.0.2\n        /32 host LOCAL\n";
        let six = "00000000000000000000000000000001 01 80 10 80       lo\n\
            fe80000000000000024211fffe000002 05 40 20 80     eth0\nnonsense\n";
        let wanted: Vec<IpAddr> =
            vec!["172.17.0.2".parse().unwrap(), "fe80::242:11ff:fe00:2".parse().unwrap()];
        assert_eq!(addresses(trie, six), wanted);
        assert_eq!(addresses("", ""), Vec::<IpAddr>::new());
    }

    #[test]
    fn a_forwarders_arguments_say_where_it_leads() {
        let words = |text: &str| text.replace(' ', "\0").into_bytes();
        let line = "/usr/bin/docker-proxy -proto tcp -host-ip 0.0.0.0 -host-port 8000 -container-ip 172.17.0.2 -container-port 80";
        let to = Some((8000, "172.17.0.2:80".parse().unwrap()));
        assert_eq!(forwarded(&words(line)), to);
        assert_eq!(forwarded(&words(&line.replace("-host-port 8000", "--host-port=8000"))), to);
        assert_eq!(forwarded(&words(&line.replace("tcp", "udp"))), None);
        assert_eq!(forwarded(&words("docker-proxy -proto tcp -host-port")), None);
        assert_eq!(
            forwarded(&words("docker-proxy -host-port 1 -container-ip x -container-port 2")),
            None
        );
        assert_eq!(forwarded(b""), None);
    }

    #[test]
    fn only_sockets_are_taken_for_sockets() {
        assert_eq!(inode("socket:[4711]"), Some(4711));
        for other in
            ["pipe:[4711]", "/dev/nvidia0", "socket:[x]", "socket:[4711", "anon_inode:[eventpoll]"]
        {
            assert_eq!(inode(other), None, "{other}");
        }
    }
}
