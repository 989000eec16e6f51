//! One process by its files: `stat` (proc(5)) for name, parent and start, `cgroup` for unit and container.

/// What `stat` tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stat {
    pub(super) name: String,
    pub(super) parent: u32,
    pub(super) started: u64,
}

/// Longest name that is kept. The kernel's are at most 15 bytes; kernel threads' may be longer.
const NAME_MAX: usize = 64;

/// Reads one line of `stat`. The name stands in parentheses and may hold spaces and parentheses itself:
/// it ends at the last one.
pub(super) fn stat(line: &str) -> Option<Stat> {
    let (_, rest) = line.split_once('(')?;
    let (name, rest) = rest.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    // Field 3 is the state, 4 the parent, 22 the start.
    let parent = fields.nth(1)?.parse().ok()?;
    let started = fields.nth(17)?.parse().ok()?;
    let name = name.chars().filter(|letter| !letter.is_control()).take(NAME_MAX).collect();
    Some(Stat { name, parent, started })
}

/// Where a process belongs, by the path of its control group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Group {
    pub(super) path: Option<String>,
    pub(super) unit: Option<String>,
    pub(super) container: Option<String>,
    /// The path in the hierarchy of version 2.
    pub(super) unified: Option<String>,
}

/// Longest path that is kept.
const PATH_MAX: usize = 512;

/// Reads `cgroup`: of version 2 the one line, of version 1 systemd's hierarchy; where that says nothing
/// (a container's daemon without systemd), any other line that names a container.
pub(super) fn group(text: &str) -> Group {
    let paths = || {
        text.lines().filter_map(|line| {
            let mut parts = line.splitn(3, ':');
            let (_, names, path) = (parts.next()?, parts.next()?, parts.next()?);
            Some((names, path))
        })
    };
    let main = paths()
        .filter(|(names, path)| path.len() > 1 && (names.is_empty() || *names == "name=systemd"))
        .max_by_key(|(_, path)| path.len())
        .map(|(_, path)| path);
    let container =
        main.and_then(container).or_else(|| paths().find_map(|(_, path)| container(path)));
    let unit = main.and_then(unit);
    let path = main.or_else(|| paths().next().map(|(_, path)| path));
    let path = path.map(|path| path.chars().take(PATH_MAX).collect());
    let unified = paths().find(|(names, path)| names.is_empty() && path.len() > 1);
    Group { path, unit, container, unified: unified.map(|(_, path)| path.to_owned()) }
}

/// The innermost unit of a path: a service, or a scope that is no container.
fn unit(path: &str) -> Option<String> {
    let mut parts = path.rsplit('/');
    let is_unit = |part: &&str| {
        part.ends_with(".service") || (part.ends_with(".scope") && container_in(part).is_none())
    };
    parts.find(is_unit).map(str::to_owned)
}

/// The innermost container of a path.
fn container(path: &str) -> Option<String> {
    path.rsplit('/').find_map(container_in).map(str::to_owned)
}

/// The container id in one part of a path: Docker and Podman write `docker-ID.scope`, `libpod-ID.scope` or
/// the bare id, Kubernetes' runtimes `cri-containerd-ID.scope`, `crio-ID.scope` or `slice:runtime:ID`, LXC
/// `lxc.payload.NAME`, nspawn `machine-NAME.scope`.
fn container_in(part: &str) -> Option<&str> {
    // The runtime's own watcher of a container runs beside it.
    if part.contains("conmon") {
        return None;
    }
    if let Some(name) = part.strip_prefix("lxc.payload.") {
        return Some(name);
    }
    let part = part.strip_suffix(".scope").unwrap_or(part);
    if let Some(name) = part.strip_prefix("machine-") {
        return Some(name);
    }
    let last = part.rsplit(['-', ':']).next()?;
    let is_id = last.len() == 64 && last.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_id.then_some(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "4f1c0c2b9d0e4f1c0c2b9d0e4f1c0c2b9d0e4f1c0c2b9d0e4f1c0c2b9d0e4f1c";

    #[test]
    fn a_name_may_hold_spaces_and_parentheses() {
        let rest = "S 12 4100 4100 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 9 0 987654 1000 10";
        for name in ["python3", "VLLM::EngineCor", "a (b) c", ") S 1 (", "((", "tmux: server"] {
            let read = stat(&format!("4100 ({name}) {rest}"));
            let wanted = Stat { name: name.into(), parent: 12, started: 987_654 };
            assert_eq!(read, Some(wanted), "{name}");
        }
        for broken in ["", "12", "12 (a", "12 (a)", "12 (a) S", "12 (a) S x 1", "12 (a) S 1 2 3"] {
            assert_eq!(stat(broken), None, "{broken}");
        }
    }

    #[test]
    fn units_and_containers_are_read_from_every_runtimes_paths() {
        let docker = format!("docker-{ID}.scope");
        let pod = "kubepods-burstable-pod1234.slice";
        for (text, unit, container) in [
            ("0::/system.slice/vllm.service\n".to_owned(), Some("vllm.service"), None),
            ("0::/system.slice/vllm@0.service/worker".into(), Some("vllm@0.service"), None),
            (
                "0::/user.slice/user-1000.slice/user@1000.service/app.slice/ollama.service".into(),
                Some("ollama.service"),
                None,
            ),
            (
                "0::/user.slice/user-1000.slice/session-3.scope".into(),
                Some("session-3.scope"),
                None,
            ),
            (format!("0::/system.slice/{docker}"), None, Some(ID)),
            (format!("0::/system.slice/{docker}/init"), None, Some(ID)),
            (format!("0::/docker/{ID}"), None, Some(ID)),
            (format!("0::/../../docker/{ID}"), None, Some(ID)),
            (format!("0::/machine.slice/libpod-{ID}.scope/container"), None, Some(ID)),
            (format!("0::/machine.slice/libpod-conmon-{ID}.scope"), Some("libpod-conmon"), None),
            (format!("0::/kubepods.slice/{pod}/cri-containerd-{ID}.scope"), None, Some(ID)),
            (format!("0::/kubepods.slice/{pod}/crio-{ID}.scope"), None, Some(ID)),
            (format!("0::/kubepods/burstable/pod1234/{ID}"), None, Some(ID)),
            (
                format!("0::/system.slice/containerd.service/{pod}:cri-containerd:{ID}"),
                Some("containerd.service"),
                Some(ID),
            ),
            ("0::/lxc.payload.build/init.scope".into(), Some("init.scope"), Some("build")),
            ("0::/machine.slice/machine-web.scope".into(), None, Some("web")),
            // Version 1: systemd's hierarchy, and another one where a container runs without systemd.
            (
                "9:name=systemd:/system.slice/vllm.service\n4:memory:/x\n0::/\n".into(),
                Some("vllm.service"),
                None,
            ),
            (format!("9:name=systemd:/docker/{ID}\n4:memory:/docker/{ID}\n"), None, Some(ID)),
            (format!("9:name=systemd:/\n4:memory:/docker/{ID}\n0::/\n"), None, Some(ID)),
            ("0::/\n".into(), None, None),
            (String::new(), None, None),
            ("nonsense".into(), None, None),
        ] {
            let group = group(&text);
            let told =
                group.unit.as_deref().map(|unit| unit.split('-').take(2).collect::<Vec<_>>());
            let wanted = unit.map(|unit| unit.split('-').take(2).collect::<Vec<_>>());
            assert_eq!((told, group.container.as_deref()), (wanted, container), "{text}");
        }
    }
}
