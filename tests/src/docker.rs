//! Docker from outside, through its command: networks and containers of one test, removed when the test ends.

use std::fs::File;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};

use crate::process::{Finished, find_program, run, tail};
use crate::{app, http, secs, wait_until};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// What `./demo build` and `./demo build --standalone` make.
pub const IMAGE_NAMES: [&str; 7] = [
    "local/dockreg",
    "local/etcd",
    "local/haproxy-discoverer",
    "local/hello",
    "local/registrar",
    "local/registrar-sidekick",
    "local/standalone",
];

/// What a container needs in which systemd runs as in a host, where `--privileged` gives too much or is refused.
pub const SYSTEMD_FLAGS: [&str; 8] = [
    "--cap-add=ALL",
    "--cap-drop=SYS_RESOURCE",
    "--security-opt=seccomp=unconfined",
    "--security-opt=apparmor=unconfined",
    "--security-opt=systempaths=unconfined",
    "--cgroupns=private",
    "--tmpfs=/run",
    "--tmpfs=/run/lock",
];

/// The containers of one test, in a private network where it asks for one. Dropping it removes all of it; when the test is
/// failing, the containers' logs are printed first.
pub struct Docker {
    name: String,
    network: String,
    _images: Option<Flock<File>>,
}

impl Docker {
    /// Makes the network, after a look whether the images of `./demo build` are there.
    pub async fn start() -> Docker {
        let images = share_images().await;
        let name = next_name();
        docker_ok(&["network", "create", &name]).await;
        Docker { network: name.clone(), name, _images: Some(images) }
    }

    /// One on Docker's default network, for the tests' own application alone, whose image it makes where it is not there.
    pub async fn for_apps() -> Docker {
        app::provide_image().await;
        Docker { name: next_name(), network: "bridge".to_owned(), _images: None }
    }

    /// The beginning of each container's name, and the name of the private network.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `docker run --detach` in the network, where that is private with a network alias; gives the container. `args` are the flags,
    /// then the image, then the command.
    pub async fn run(&self, alias: &str, args: &[&str]) -> Container {
        self.made("run", alias, &[&["--detach"], args].concat()).await
    }

    /// `docker create`: [`Docker::run`] without the start.
    pub async fn create(&self, alias: &str, args: &[&str]) -> Container {
        self.made("create", alias, args).await
    }

    async fn made(&self, verb: &str, alias: &str, args: &[&str]) -> Container {
        let name = format!("{}-{alias}", self.name);
        let label = format!("e2e={}", self.name);
        let mut all = vec![verb, "--name", &name, "--label", &label];
        if !args.contains(&"--network") {
            all.extend(["--network", &self.network]);
            if self.network == self.name {
                all.extend(["--network-alias", alias]);
            }
        }
        all.extend(args);
        let id = docker_ok(&all).await;
        Container { id: id.trim().to_owned() }
    }

    /// One more private network, which goes with the test; gives its name.
    pub async fn network(&self, alias: &str) -> String {
        let name = format!("{}-{alias}", self.name);
        docker_ok(&["network", "create", "--label", &format!("e2e={}", self.name), &name]).await;
        name
    }

    /// Starts the tests' own application as the service [`Docker::service`], its port 8000 published on a port of 127.0.0.1 that
    /// Docker chooses; `flags` are more of `docker run`.
    pub async fn app(&self, alias: &str, flags: &[&str]) -> Container {
        let label = format!("SERVICE_NAME={}", self.service(alias));
        let all = [&["--publish", "127.0.0.1::8000", "--label", &label], flags, &[app::IMAGE]].concat();
        self.run(alias, &all).await
    }

    /// The name that [`Docker::app`] gives a service: no other test has it.
    pub fn service(&self, alias: &str) -> String {
        format!("{}-{alias}", self.name)
    }

    /// Starts etcd (image `local/etcd`) under the alias `etcd`, and gives its address on this host.
    pub async fn etcd(&self) -> SocketAddr {
        let etcd =
            self.run("etcd", &["--publish", "127.0.0.1::2379", "--env", "ETCD_LOG_LEVEL=error", "local/etcd"]).await;
        let address = etcd.published(2379).await;
        wait_until(secs(20), "etcd in its container answers", async || match http::get(address, "/health").await {
            Ok(reply) if reply.status == 200 && reply.body.contains("true") => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
        address
    }

    /// Starts the demo's application with the registrar beside it; `args` are more flags of `docker run`.
    pub async fn sidekick(&self, alias: &str, args: &[&str]) -> Container {
        let mut all = vec!["--env", "ETCD=http://etcd:2379"];
        all.extend(args);
        all.push("local/dockreg");
        self.run(alias, &all).await
    }

    /// [`Docker::sidekick`] as it should be: with Docker's socket, and port 8000 published on a port of 127.0.0.1 that Docker
    /// chooses.
    pub async fn application(&self, alias: &str) -> Container {
        self.sidekick(alias, &["--publish", "127.0.0.1::8000", "--volume", SOCKET]).await
    }
}

/// The images belong to the machine, not to a test process: shared by every test that uses them, held alone by the one that
/// removes them. A lock on a file says who has them, and goes with its process.
async fn lock_images(how: FlockArg) -> Flock<File> {
    let path = std::env::temp_dir().join("e2e-images.lock");
    let open = || {
        File::open(&path).or_else(|_| File::create_new(&path)).map_err(|error| format!("{}: {error}", path.display()))
    };
    wait_until(secs(600), "the images are free to use", async || {
        Flock::lock(open()?, how).map_err(|(_, error)| error.to_string())
    })
    .await
}

/// The images for a test that uses them, after a look whether they are there: nobody removes them until this is dropped.
pub async fn share_images() -> Flock<File> {
    let images = lock_images(FlockArg::LockSharedNonblock).await;
    for image in IMAGE_NAMES {
        let found = docker(&["image", "inspect", "--format", "{{.Id}}", image]).await;
        assert_eq!(
            found.code,
            Some(0),
            "no image {image}: run `./demo build` and `./demo build --standalone` first\n{}",
            found.stderr
        );
    }
    images
}

/// The flag's value that shares Docker's socket with a container.
pub const SOCKET: &str = "/var/run/docker.sock:/var/run/docker.sock";

/// The images for one test alone, which may remove them: their names come back when this is dropped.
pub struct Images {
    kept: Vec<(&'static str, String)>,
    _alone: Flock<File>,
}

impl Images {
    /// Waits until no other test uses them.
    pub async fn alone() -> Images {
        let mut images = Images { kept: Vec::new(), _alone: lock_images(FlockArg::LockExclusiveNonblock).await };
        for name in IMAGE_NAMES {
            let second_name = format!("e2e-keeps/{}", name.replace('/', "-"));
            docker_ok(&["tag", name, &second_name]).await;
            images.kept.push((name, second_name));
        }
        images
    }
}

impl Drop for Images {
    fn drop(&mut self) {
        for (name, second_name) in &self.kept {
            blocking(&["tag", second_name, name]);
            blocking(&["rmi", second_name]);
        }
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        let filter = format!("label=e2e={}", self.name);
        let listed = blocking(&["ps", "--all", "--quiet", "--no-trunc", "--filter", &filter]);
        let containers: Vec<&str> = listed.split_whitespace().collect();
        if std::thread::panicking() {
            for id in &containers {
                let about = blocking(&["inspect", "--format", "{{.Name}} ({{.State.Status}})", id]);
                eprintln!("--- docker logs of {}\n{}", about.trim(), tail(&blocking(&["logs", id])));
            }
        }
        if !containers.is_empty() {
            blocking(&[&["rm", "--force", "--volumes"], &containers[..]].concat());
        }
        let mut networks = blocking(&["network", "ls", "--quiet", "--filter", &filter]);
        if self.network == self.name {
            networks.push_str(&self.name);
        }
        for network in networks.split_whitespace() {
            blocking(&["network", "rm", network]);
        }
    }
}

fn next_name() -> String {
    format!("e2e-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// One container.
pub struct Container {
    id: String,
}

impl Container {
    /// The only container of a service of a project of Docker Compose.
    pub async fn of_compose(project: &str, service: &str) -> Container {
        let project = format!("label=com.docker.compose.project={project}");
        let service = format!("label=com.docker.compose.service={service}");
        let listed = docker_ok(&["ps", "--quiet", "--no-trunc", "--filter", &project, "--filter", &service]).await;
        assert_eq!(listed.lines().count(), 1, "containers of {project}, {service}: {listed:?}");
        Container { id: listed.trim().to_owned() }
    }

    /// Its whole id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The id's first twelve characters: the container's host name, and what the demo's application answers.
    pub fn short_id(&self) -> &str {
        &self.id[..12]
    }

    /// The address on this host that the container's TCP port is published on now.
    pub async fn published(&self, port: u16) -> SocketAddr {
        let shown = docker_ok(&["port", &self.id, &format!("{port}/tcp")]).await;
        let first = shown.lines().next().unwrap_or_default();
        first.parse().unwrap_or_else(|_| panic!("docker port {} {port}: {shown:?}", self.id))
    }

    /// Its address in its only network.
    pub async fn own_ip(&self) -> IpAddr {
        let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
        let shown = docker_ok(&["inspect", "--format", format, &self.id]).await;
        shown.trim().parse().unwrap_or_else(|_| panic!("the address of {}: {shown:?}", self.id))
    }

    /// All it wrote to standard output and standard error.
    pub async fn logs(&self) -> String {
        let logs = docker(&["logs", &self.id]).await;
        format!("{}{}", logs.stdout, logs.stderr)
    }

    /// Waits until its log contains all of these texts, and gives the log.
    pub async fn wait_log(&self, limit: Duration, texts: &[&str]) -> String {
        wait_until(limit, &format!("docker logs contain {texts:?}"), async || {
            let log = self.logs().await;
            if texts.iter().all(|text| log.contains(text)) { Ok(log) } else { Err(tail(&log)) }
        })
        .await
    }

    /// Runs a command in it, which must succeed, and gives its output.
    pub async fn exec(&self, command: &[&str]) -> String {
        docker_ok(&[&["exec", &self.id], command].concat()).await
    }

    /// `docker stop`, `kill`, `start`, `restart`, ... of it, with flags where the words have some.
    pub async fn tell(&self, words: &str) {
        let words: Vec<&str> = words.split(' ').collect();
        docker_ok(&[&words[..], &[&self.id]].concat()).await;
    }
}

/// Runs `docker` with these arguments, whatever comes of it.
pub async fn docker(args: &[&str]) -> Finished {
    run(&program(), args, &[], secs(60)).await
}

/// Runs `docker` with these arguments, panics unless it succeeds, and gives its standard output.
pub async fn docker_ok(args: &[&str]) -> String {
    let finished = docker(args).await;
    assert_eq!(finished.code, Some(0), "docker {}: {}", args.join(" "), finished.stderr);
    finished.stdout
}

fn program() -> PathBuf {
    find_program("docker", "docker.io")
}

/// For `drop`, where nothing can be awaited and nothing may panic: both outputs of the command.
fn blocking(args: &[&str]) -> String {
    let output = std::process::Command::new(program()).args(args).output();
    output.map_or_else(
        |error| error.to_string(),
        |output| format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)),
    )
}
