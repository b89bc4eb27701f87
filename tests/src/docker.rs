//! Docker from outside, through its command: networks and containers of one test, removed when the test ends.

use std::fs::File;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};

use crate::process::{Finished, find_program, run, tail};
use crate::{http, secs, wait_until};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// What `./demo build` makes.
pub const IMAGE_NAMES: [&str; 3] = ["local/dockreg", "local/etcd", "local/haproxy-discoverer"];

/// A private network and what was started in it. Dropping it removes all of it; when the test is failing, the containers' logs
/// are printed first.
pub struct Docker {
    name: String,
    _images: Flock<File>,
}

impl Docker {
    /// Makes the network, after a look whether the images of `./demo build` are there.
    pub async fn start() -> Docker {
        let images = lock_images(FlockArg::LockSharedNonblock).await;
        for image in IMAGE_NAMES {
            let found = docker(&["image", "inspect", "--format", "{{.Id}}", image]).await;
            assert_eq!(found.code, Some(0), "no image {image}: run `./demo build` first\n{}", found.stderr);
        }
        let name = format!("e2e-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        docker_ok(&["network", "create", &name]).await;
        Docker { name, _images: images }
    }

    /// The name of the network, and the beginning of each container's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `docker run --detach` in the network with a network alias; gives the container. `args` are the flags, then the image, then
    /// the command.
    pub async fn run(&self, alias: &str, args: &[&str]) -> Container {
        let name = format!("{}-{alias}", self.name);
        let label = format!("e2e={}", self.name);
        let mut all = vec![
            "run",
            "--detach",
            "--name",
            &name,
            "--label",
            &label,
            "--network",
            &self.name,
            "--network-alias",
            alias,
        ];
        all.extend(args);
        let id = docker_ok(&all).await;
        Container { id: id.trim().to_owned() }
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
        blocking(&["network", "rm", &self.name]);
    }
}

/// One container.
pub struct Container {
    id: String,
}

impl Container {
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

    /// `docker stop`, `kill`, `start`, `restart`, ... of it.
    pub async fn tell(&self, verb: &str) {
        docker_ok(&[verb, &self.id]).await;
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
