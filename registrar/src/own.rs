//! Which container is this? From what the kernel shows inside it to names that Docker may know. Pure: no I/O.
//!
//! A guess here is only a candidate: [`is_this`] checks it against what Docker says of the container.

use bollard::models::ContainerInspectResponse;

/// What a process can see of the container it is in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Traces {
    /// `/proc/self/mountinfo`.
    pub mountinfo: String,
    /// `/proc/self/cgroup`.
    pub cgroup: String,
    /// The host name: Docker makes it the first 12 characters of the id, unless the user gave another.
    pub hostname: String,
}

/// A name that may be this container's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Candidate {
    /// The user said so.
    Given(String),
    /// The whole id, as a file of this container or its cgroup has it.
    Id(String),
    /// The host name.
    Hostname(String),
}

impl Candidate {
    /// What to ask Docker for.
    pub fn name(&self) -> &str {
        match self {
            Self::Given(name) | Self::Id(name) | Self::Hostname(name) => name,
        }
    }
}

/// What to ask Docker for, the surest first. What the user gave is the only one then.
pub fn candidates(given: Option<&str>, traces: &Traces) -> Vec<Candidate> {
    if let Some(name) = given {
        return vec![Candidate::Given(name.to_owned())];
    }
    let mut candidates: Vec<Candidate> = Vec::new();
    let ids = mountinfo_ids(&traces.mountinfo).chain(cgroup_ids(&traces.cgroup));
    for id in ids {
        let id = Candidate::Id(id.to_owned());
        if !candidates.contains(&id) {
            candidates.push(id);
        }
    }
    let hostname = traces.hostname.trim();
    if is_container_name(hostname) {
        candidates.push(Candidate::Hostname(hostname.to_owned()));
    }
    candidates
}

/// Whether the container that Docker showed for the candidate is this one.
///
/// A host name that the user chose may be the name of some other container; Docker looks a name up among both.
pub fn is_this(candidate: &Candidate, container: &ContainerInspectResponse) -> bool {
    match candidate {
        Candidate::Given(_) => true,
        Candidate::Id(id) => container.id.as_deref() == Some(id),
        Candidate::Hostname(name) => {
            container.config.as_ref().and_then(|config| config.hostname.as_deref()) == Some(name)
        }
    }
}

/// Whether Docker could have given this name or id to a container (`[a-zA-Z0-9][a-zA-Z0-9_.-]+`).
pub fn is_container_name(text: &str) -> bool {
    text.len() <= 255
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

/// Docker and Podman mount three files from the container's own directory on the host, whose name is the id. Other
/// mounts are not looked at: a volume may hold another container's directory.
fn mountinfo_ids(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| {
        // proc(5): mount id, parent id, device, root within the file system, mount point, ...
        let mut fields = line.split(' ').skip(3);
        let (root, mount_point) = (fields.next()?, fields.next()?);
        matches!(mount_point, "/etc/hostname" | "/etc/hosts" | "/etc/resolv.conf").then(|| last_id(root))?
    })
}

/// cgroup v1 lists a path for each hierarchy, v2 one in all. With a cgroup namespace of its own a container sees only
/// `/`. Where containers are nested, the innermost comes last.
fn cgroup_ids(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| last_id(line.splitn(3, ':').nth(2)?))
}

/// The last run of exactly 64 hexadecimal digits.
fn last_id(path: &str) -> Option<&str> {
    path.split(|c: char| !c.is_ascii_alphanumeric())
        .rfind(|part| part.len() == 64 && part.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "e1ad04d7cddc8b149c9bc1c95e4ca2eea53b118e5c8926ff326965335a84c637";
    const B: &str = "1eb9c2f3b6cad4f54b32c93c008ff2742632c9b507cd09623a7d106a8235c6b3";

    fn ids(mountinfo: &str, cgroup: &str) -> Vec<String> {
        let traces = Traces { mountinfo: mountinfo.into(), cgroup: cgroup.into(), hostname: String::new() };
        candidates(None, &traces).iter().map(|candidate| candidate.name().to_owned()).collect()
    }

    #[test]
    fn the_id_is_read_from_the_files_that_docker_and_podman_mount() {
        let docker = format!(
            "71 46 0:39 / / rw,nodev,noatime master:2 - fuse.fuse-overlayfs fuse-overlayfs rw\n\
             77 76 0:29 /docker/{B} /sys/fs/cgroup/cpu ro,nosuid - cgroup cgroup rw,cpu\n\
             91 71 254:0 /var/lib/docker/containers/{B} /backup rw,relatime - ext4 /dev/sda1 rw\n\
             92 71 254:0 /var/lib/docker/containers/{A}/resolv.conf /etc/resolv.conf rw,relatime - ext4 /dev/sda1 rw\n\
             93 71 254:0 /var/lib/docker/containers/{A}/hostname /etc/hostname rw,relatime - ext4 /dev/sda1 rw\n"
        );
        assert_eq!(ids(&docker, ""), [A]);
        let podman = format!(
            "812 800 0:23 /containers/storage/overlay-containers/{A}/userdata/hosts /etc/hosts rw - tmpfs tmpfs rw\n"
        );
        assert_eq!(ids(&podman, ""), [A]);
        for none in ["", "nonsense", "1 2 3", "22 27 0:21 / /proc rw,relatime - proc proc rw"] {
            assert_eq!(ids(none, ""), Vec::<String>::new(), "{none:?}");
        }
    }

    #[test]
    fn the_id_is_read_from_cgroups_of_both_versions() {
        let cases = [
            (format!("9:name=systemd:/docker/{A}\n8:pids:/docker/{A}\n0::/docker/{A}\n"), vec![A]),
            (format!("0::/system.slice/docker-{A}.scope\n"), vec![A]),
            (format!("0::/machine.slice/libpod-{A}.scope/container\n"), vec![A]),
            (format!("4:memory:/docker/{B}/docker/{A}\n"), vec![A]),
            (format!("1:name=systemd:/a:b/{A}\n"), vec![A]),
            (format!("1:cpu:/docker/{A}\n2:memory:/docker/{B}\n"), vec![A, B]),
            ("0::/\n".into(), vec![]),
            ("9:name=systemd:/user.slice\n".into(), vec![]),
            (format!("0::/{}\n", &A[..40]), vec![]),
            (format!("0::/{A}{B}\n"), vec![]),
            (format!("0::/{}\n", A.to_uppercase()), vec![]),
            ("::".into(), vec![]),
        ];
        for (text, expected) in cases {
            assert_eq!(ids("", &text), expected, "{text:?}");
        }
    }

    #[test]
    fn what_the_user_gives_is_the_only_candidate_and_the_host_name_the_last() {
        let traces = Traces { cgroup: format!("0::/docker/{A}"), hostname: "web\n".into(), ..Traces::default() };
        assert_eq!(candidates(Some("x"), &traces), [Candidate::Given("x".into())]);
        assert_eq!(candidates(None, &traces), [Candidate::Id(A.into()), Candidate::Hostname("web".into())]);
        for bad in ["", "../x", "a b", "-x"] {
            assert_eq!(candidates(None, &Traces { hostname: bad.into(), ..Traces::default() }), [], "{bad:?}");
        }
    }

    #[test]
    fn a_host_name_that_is_another_containers_name_misleads_nobody() {
        let container = |id: &str, hostname: &str| ContainerInspectResponse {
            id: Some(id.into()),
            config: Some(bollard::models::ContainerConfig { hostname: Some(hostname.into()), ..Default::default() }),
            ..Default::default()
        };
        let by_name = Candidate::Hostname("web".into());
        assert!(is_this(&by_name, &container(A, "web")));
        assert!(!is_this(&by_name, &container(B, &B[..12])), "a container that is called web");
        assert!(is_this(&Candidate::Hostname(A[..12].into()), &container(A, &A[..12])));
        assert!(is_this(&Candidate::Id(A.into()), &container(A, "web")));
        assert!(!is_this(&Candidate::Id(A.into()), &container(B, "web")));
        assert!(!is_this(&by_name, &ContainerInspectResponse::default()));
    }
}
