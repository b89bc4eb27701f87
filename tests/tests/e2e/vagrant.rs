//! `vagrant up host-1 host-2`: the example hosts, as containers of this machine, from nothing to the last trace.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use e2e::commands::{Command, How};
use e2e::docker::{docker, docker_ok, share_images};
use e2e::process::{Finished, find_program, run, tail};
use e2e::shown::{Here, Shown};
use e2e::{secs, wait_until, within, workspace};
use serde_json::Value;
use tempfile::TempDir;

/// How `docker run` starts the application in the tour, less its `IP`.
const RUN: &str = "docker run -d -p 8000 -v /var/run/docker.sock:/var/run/docker.sock";

/// An environment of Vagrant with addresses, state and home of its own. Dropping it removes what is left of it.
struct Hosts {
    dir: TempDir,
    subnet: String,
    remove_host_image: bool,
}

impl Hosts {
    fn new() -> Hosts {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let dir = tempfile::Builder::new().prefix("e2e-vagrant-").tempdir().unwrap();
        // No other test that runs has the same: a process id and a number, as two bytes of an address. 10.1.0 is the user's.
        let id = std::process::id() * 4 + NEXT.fetch_add(1, Ordering::Relaxed) % 4;
        let [low, high] = [id % 256, id / 256];
        let candidates = [
            format!("10.{}.{low}", 64 + high % 128),
            format!("172.{}.{low}", 16 + high % 16),
            format!("192.168.{low}"),
            format!("198.{}.{low}", 18 + high % 2), // for measuring networks: RFC 2544
        ];
        let routes = routes();
        let subnet = candidates.into_iter().find(|subnet| !routes.iter().any(|route| route.meets(subnet)));
        let subnet = subnet.unwrap_or_else(|| panic!("this machine's routes leave no addresses for hosts: {routes:?}"));
        Hosts { dir, subnet, remove_host_image: false }
    }

    fn ip(&self, host: u8) -> String {
        format!("{}.{}", self.subnet, 100 + host)
    }

    fn container(&self, host: u8) -> String {
        format!("{}-host-{host}", self.network())
    }

    fn network(&self) -> String {
        format!("hosts-{}", self.subnet)
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    async fn vagrant_with(&self, args: &[&str], more: &[(&str, &str)]) -> Finished {
        self.run_with("vagrant", "vagrant", args, more).await
    }

    async fn run_with(&self, program: &str, package: &str, args: &[&str], more: &[(&str, &str)]) -> Finished {
        let (home, state) = (self.path("home"), self.path("state"));
        let cwd = workspace().display().to_string();
        let mut variables = vec![
            ("VAGRANT_HOME", home.as_str()),
            ("VAGRANT_DOTFILE_PATH", &state),
            ("VAGRANT_CWD", &cwd),
            ("VAGRANT_DEFAULT_PROVIDER", "docker"),
            ("VAGRANT_CHECKPOINT_DISABLE", "1"),
            ("VAGRANT_NO_COLOR", "1"),
            ("HOSTS_NETWORK", &self.subnet),
        ];
        variables.extend(more);
        let start = Instant::now();
        let finished = run(&find_program(program, package), args, &variables, secs(600)).await;
        println!("{:6.1} s  {program} {}", start.elapsed().as_secs_f64(), args.join(" "));
        finished
    }

    /// A command of Vagrant that must succeed; gives all it said.
    async fn vagrant(&self, args: &[&str]) -> String {
        said(&self.vagrant_with(args, &[]).await, Some(0))
    }

    /// A command in a host, by `vagrant ssh` as a user would; it must succeed.
    async fn ssh(&self, host: u8, command: &str) -> String {
        let name = format!("host-{host}");
        let finished = self.vagrant_with(&["ssh", &name, "--command", command], &[]).await;
        assert_eq!(finished.code, Some(0), "{command} on {name}: {finished:?}");
        println!("host-{host}$ {command}\n{}", finished.stdout);
        finished.stdout.trim().to_owned()
    }

    /// Runs what docs/vagrant.md, or the README, has below one of its headings, as it stands there but for the hosts' addresses,
    /// and containers' ids and ports. Gives all that was said.
    async fn play(&self, shown: Shown) -> String {
        let (mut here, mut all) = (Here::default(), String::new());
        for (how, command) in shown.with("10.1.0.", &format!("{}.", self.subnet)) {
            let limit = if how == How::Wait { secs(60) } else { Duration::ZERO };
            let what = format!("{} does what is written of it", command.text);
            let said = wait_until(limit, &what, async || self.type_in(&mut here, &command).await).await;
            all.push_str(&said);
        }
        all
    }

    /// One command on this machine, or in the host whose prompt it stands behind.
    async fn type_in(&self, here: &mut Here, command: &Command) -> Result<String, String> {
        let text = here.command(&command.text);
        let finished = match &command.host {
            Some(host) => self.vagrant_with(&["ssh", host, "--command", &text], &[]).await,
            // What follows is typed in there.
            None if text.starts_with("vagrant ssh ") && !text.contains(" -c ") => {
                self.run_with("bash", "bash", &["-c", &format!("{text} -c true")], &[]).await
            }
            None => self.run_with("bash", "bash", &["-c", &text], &[]).await,
        };
        println!("{}", finished.stdout);
        if finished.code != Some(0) {
            return Err(format!("{finished:?}"));
        }
        if !command.output.is_empty() {
            here.compare(&command.output, &finished.stdout)
                .map_err(|why| format!("{why}\n{}", tail(&finished.stdout)))?;
        }
        Ok(finished.stdout)
    }

    /// The ids of the containers of the example that run in a host, the newest first.
    async fn containers(&self, host: u8) -> Vec<String> {
        let listed = self.look(host, "docker ps --no-trunc --quiet --filter ancestor=local/dockreg").await;
        listed.lines().map(str::to_owned).collect()
    }

    /// A question that is asked again and again, without the second that `vagrant ssh` takes.
    async fn look(&self, host: u8, command: &str) -> String {
        docker(&["exec", &self.container(host), "bash", "-c", command]).await.stdout.trim().to_owned()
    }

    async fn wait(&self, what: &str, host: u8, command: &str, is_it: impl Fn(&str) -> bool) -> String {
        wait_until(secs(60), what, async || {
            let seen = self.look(host, command).await;
            if is_it(&seen) { Ok(seen) } else { Err(format!("{command} on host-{host}: {seen}")) }
        })
        .await
    }

    /// The keys below `/service` as the host's etcd has them, each with its value and what it has left to live.
    async fn keys(&self, host: u8) -> Vec<(String, String, i64)> {
        let listed = self.look(host, &format!("curl -sS -m 3 http://{}:4001/v2/keys/service", self.ip(host))).await;
        let listed: Value = serde_json::from_str(&listed).unwrap_or_default();
        let nodes = listed["node"]["nodes"].as_array().cloned().unwrap_or_default();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        // A service's own directory stays when its last instance has gone.
        let instances = nodes.iter().filter(|node| node["dir"].is_null());
        instances.map(|node| (text(&node["key"]), text(&node["value"]), node["ttl"].as_i64().unwrap_or(0))).collect()
    }

    /// Waits until the host's etcd has exactly these keys, in any order.
    async fn wait_keys(&self, limit: Duration, host: u8, wanted: &[&str]) {
        wait_until(limit, &format!("host-{host}'s etcd has {wanted:?}"), async || {
            let keys = self.keys(host).await;
            let right = keys.len() == wanted.len() && keys.iter().all(|(key, ..)| wanted.contains(&key.as_str()));
            if right { Ok(()) } else { Err(format!("{keys:?}")) }
        })
        .await;
    }

    /// Waits until all these containers, and no other, answer through the HAProxy of this host.
    async fn wait_answers(&self, host: u8, containers: &[&str]) {
        let mut wanted: Vec<String> = containers.iter().map(|id| format!("Hello from {}", &id[..12])).collect();
        wanted.sort();
        let command = format!("for i in 1 2 3 4 5 6; do curl -sS -m 3 http://{}/; done | sort -u", self.ip(host));
        self.wait(&format!("{wanted:?} through HAProxy"), host, &command, |seen| seen == wanted.join("\n")).await;
    }

    /// Both members are there and healthy; both hosts' HAProxy, discoverer and registrar run.
    async fn wait_whole(&self) {
        for host in [1, 2] {
            let url = format!("http://{}:2379", self.ip(host));
            self.wait("a healthy etcd", host, &format!("curl -sS -m 3 {url}/health"), |seen| seen.contains("true"))
                .await;
            self.wait("both members", host, &format!("curl -sS -m 3 {url}/v2/machines"), |seen| {
                seen.contains(&self.ip(1)) && seen.contains(&self.ip(2))
            })
            .await;
            let units = "systemctl is-active docker haproxy registrar discoverer | sort | uniq -c";
            self.wait("all services run", host, units, |seen| seen == "4 active").await;
            let failed = "systemctl --no-legend --failed; systemctl is-system-running --wait";
            self.wait("nothing has failed", host, failed, |seen| seen == "running").await;
            let status = format!("curl -sS -m 3 -o /dev/null -w '%{{http_code}}' http://{}/", self.ip(host));
            self.wait("HAProxy answers", host, &status, |seen| ["200", "404", "503"].contains(&seen)).await;
        }
    }

    /// The anonymous volumes of the hosts.
    async fn volumes(&self) -> Vec<String> {
        let format = "{{range .Mounts}}{{if eq .Type \"volume\"}}{{.Name}} {{end}}{{end}}";
        let listed = docker_ok(&["inspect", "--format", format, &self.container(1), &self.container(2)]).await;
        listed.split_whitespace().map(str::to_owned).collect()
    }

    async fn assert_nothing_is_left(&self, volumes: &[String]) {
        let filter = format!("name={}-", self.network());
        assert_eq!(docker_ok(&["ps", "--all", "--quiet", "--filter", &filter]).await, "");
        let networks = docker_ok(&["network", "ls", "--format", "{{.Name}}"]).await;
        assert!(!networks.lines().any(|name| name == self.network()), "{networks}");
        let left = docker_ok(&["volume", "ls", "--quiet"]).await;
        assert!(
            !volumes.is_empty() && volumes.iter().all(|name| !left.contains(name.as_str())),
            "{volumes:?} in {left}"
        );
    }
}

/// Where a route of this machine leads to.
#[derive(Debug)]
struct Route {
    destination: u32,
    mask: u32,
}

impl Route {
    /// Whether it leads to one of the 256 addresses that begin with these three numbers.
    fn meets(&self, subnet: &str) -> bool {
        let first: std::net::Ipv4Addr = format!("{subnet}.0").parse().unwrap();
        (self.destination ^ u32::from(first)) & self.mask & 0xffff_ff00 == 0
    }
}

/// The routes of this machine but for the default ones, of which a VPN may make two halves.
fn routes() -> Vec<Route> {
    let table = std::fs::read_to_string("/proc/net/route").unwrap();
    table.lines().skip(1).filter_map(route_of).filter(|route| route.mask.count_ones() > 1).collect()
}

/// A line of the kernel's table, whose numbers are written as they lie in memory, the address's first byte first.
fn route_of(line: &str) -> Option<Route> {
    let columns: Vec<&str> = line.split_whitespace().collect();
    let number = |column: usize| u32::from_str_radix(columns.get(column)?, 16).ok().map(u32::from_be);
    Some(Route { destination: number(1)?, mask: number(7)? })
}

/// A network of Docker with these addresses. Dropping it removes it.
struct Network(String);

impl Network {
    async fn create(name: String, subnet: &str) -> Network {
        docker_ok(&["network", "create", "--subnet", &format!("{subnet}.0/24"), &name]).await;
        Network(name)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = std::process::Command::new("docker").args(["network", "rm", &self.0]).output();
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        let (one, two, network) = (self.container(1), self.container(2), self.network());
        let mut script = String::new();
        if std::thread::panicking() {
            for host in [&one, &two] {
                script += &format!(
                    "echo '--- {host}'; docker exec {host} sh -c 'journalctl --no-pager -n 40 -u etcd-member -u registrar -u discoverer; \
                     docker ps -a; docker logs --tail 5 etcd' 2>&1;"
                );
            }
        }
        script += &format!("docker rm -fv {one} {two}; docker network rm {network};");
        if self.remove_host_image {
            script += "docker rmi local/vagrant-host";
        }
        let tried = std::process::Command::new("sh").args(["-c", &script]).output();
        if let Ok(output) = tried
            && std::thread::panicking()
        {
            eprintln!("{}", String::from_utf8_lossy(&output.stdout));
        }
    }
}

fn said(finished: &Finished, code: Option<i32>) -> String {
    let all = format!("{}\n{}", finished.stdout, finished.stderr);
    assert_eq!(finished.code, code, "{}", tail(&all));
    all
}

#[tokio::test]
#[ignore = "long: run by ./test --full"]
async fn the_hosts_come_up_play_the_tour_survive_what_befalls_hosts_and_leave_nothing() {
    let images = share_images().await;
    let mut hosts = Hosts::new();
    hosts.remove_host_image = docker(&["image", "inspect", "local/vagrant-host"]).await.code != Some(0);
    within(1700, async {
        // host-2 alone says whom it waits for, and does not hold up the command for ever.
        let waits = said(&hosts.vagrant_with(&["up", "host-2"], &[("HOSTS_WAIT", "6")]).await, Some(0));
        assert!(waits.contains("Waiting for the etcd of host-1") && waits.contains("vagrant up host-1"), "{waits}");
        hosts.play(Shown::below("../README.md", "Two hosts")).await;
        hosts.wait_whole().await;
        hosts.vagrant(&["destroy", "--force"]).await;

        hosts.play(Shown::below("vagrant.md", "Two hosts by one command")).await;
        hosts.wait_whole().await;
        let volumes = hosts.volumes().await;
        let again = hosts.vagrant(&["up", "host-1", "host-2"]).await;
        assert!(again.contains("already provisioned"), "{again}");
        hosts.vagrant(&["halt"]).await;
        hosts.vagrant(&["up", "host-1", "host-2"]).await;
        hosts.wait_whole().await;

        // A host that is destroyed takes leave, so that the other one goes on.
        let destroyed = hosts.vagrant(&["destroy", "--force", "host-2"]).await;
        assert!(destroyed.contains("has left the cluster"), "{destroyed}");
        let healthy = format!("curl -sS -m 3 http://{}:2379/health", hosts.ip(1));
        hosts.wait("a healthy etcd", 1, &healthy, |seen| seen.contains("true")).await;
        hosts.vagrant(&["destroy", "--force"]).await;

        hosts.play(Shown::below("vagrant.md", "The tour")).await;
        after_the_tour(&hosts).await;
        lost_and_found(&hosts).await;
        bad_input(&hosts).await;

        let all = [volumes, hosts.volumes().await].concat();
        hosts.play(Shown::below("vagrant.md", "Removing it")).await;
        hosts.assert_nothing_is_left(&all).await;
    })
    .await;
    drop(hosts);
    drop(images);
}

/// What docs/vagrant.md says of it beside the commands, where the tour has led: the first container is stopped, two run on host-2, and
/// the plain one.
async fn after_the_tour(hosts: &Hosts) {
    let ip1 = hosts.ip(1);
    let first = hosts.look(1, "docker ps --all --no-trunc --quiet --filter ancestor=local/dockreg").await;
    let [third, second] = <[String; 2]>::try_from(hosts.containers(2).await).unwrap();
    let (key2, key3) = (key_of(hosts, 2, &second).await, key_of(hosts, 2, &third).await);
    // In either host, on either port of etcd's, and through either HAProxy.
    for port in [2379, 4001] {
        let machines = hosts.look(1, &format!("curl -sS http://{ip1}:{port}/v2/machines")).await;
        assert!(machines.contains(&ip1) && machines.contains(&hosts.ip(2)), "{machines}");
    }
    for host in [1, 2] {
        hosts.wait_keys(secs(10), host, &[&key2, &key3]).await;
        hosts.wait_answers(host, &[&second, &third]).await;
    }
    let keys = hosts.keys(1).await;
    assert!(keys.iter().all(|(_, value, ttl)| value == "running" && (1..=20).contains(ttl)), "{keys:?}");
    hosts.ssh(1, &format!("docker start {first}")).await;
    let key1 = key_of(hosts, 1, &first).await;
    hosts.wait_keys(secs(30), 2, &[&key1, &key2, &key3]).await;

    // The stop returns after the key has gone: there is nothing to wait for.
    hosts.ssh(2, &format!("docker stop {second}")).await;
    for host in [1, 2] {
        let keys = hosts.keys(host).await;
        assert!(keys.iter().all(|(key, ..)| *key != key2), "after docker stop: {keys:?}");
        hosts.wait_answers(host, &[&first, &third]).await;
    }
    hosts.ssh(2, &format!("docker rm -f {third}")).await;
    // Killed without a word: HAProxy's own check first, the TTL after that.
    hosts.wait_keys(secs(40), 1, &[&key1]).await;

    // With host-2 halted there is no quorum: what is registered stays and is served; what is new waits for host-2.
    hosts.vagrant(&["halt", "host-2"]).await;
    hosts.wait_answers(1, &[&first]).await;
    assert!(hosts.ssh(1, &format!("curl -sS http://{ip1}:2379/health")).await.contains("false"));
    let late = hosts.ssh(1, &format!("{RUN} -e IP={ip1} --link etcd:etcd local/dockreg")).await;
    hosts.vagrant(&["up", "host-2"]).await;
    hosts.wait_whole().await;
    let key4 = key_of(hosts, 1, &late).await;
    hosts.wait_keys(secs(40), 2, &[&key1, &key4]).await;
    hosts.wait_answers(2, &[&first, &late]).await;

    // After a restart of its host an instance has another port, and its key says so.
    hosts.vagrant(&["halt", "host-1"]).await;
    hosts.vagrant(&["up", "host-1"]).await;
    hosts.wait_whole().await;
    hosts.ssh(1, &format!("docker start {first}")).await;
    let key5 = key_of(hosts, 1, &first).await;
    hosts.wait_keys(secs(40), 2, &[&key5]).await;
    hosts.wait_answers(2, &[&first]).await;
    hosts.ssh(1, &format!("docker rm -f {first} {late}")).await;
}

/// The key that a container of the example has.
async fn key_of(hosts: &Hosts, host: u8, container: &str) -> String {
    let published = hosts.look(host, &format!("docker port {container} 8000/tcp | head -n 1")).await;
    format!("/service/{}:{}", hosts.ip(host), published.rsplit(':').next().unwrap())
}

/// A host that is destroyed while it cannot take leave leaves the other one without a quorum, and there is a way out.
async fn lost_and_found(hosts: &Hosts) {
    hosts.vagrant(&["halt", "host-2"]).await;
    hosts.vagrant(&["destroy", "--force", "host-2"]).await;
    let alone = hosts.play(Shown::below("vagrant.md", "What the hosts do when things happen")).await;
    assert!(alone.contains("the only member"), "{alone}");
    hosts.wait_whole().await;

    // The other way round, it is host-1, which must not take the other's silence meanwhile for a reason to begin a cluster.
    hosts.vagrant(&["halt", "host-1"]).await;
    hosts.vagrant(&["destroy", "--force", "host-1"]).await;
    let refused = said(&hosts.vagrant_with(&["up", "host-1"], &[]).await, Some(1));
    assert!(refused.contains("On host-2: sudo etcd-member alone"), "{refused}");
    let alone = hosts.ssh(2, "sudo etcd-member alone").await;
    assert!(alone.contains("the only member"), "{alone}");
    hosts.vagrant(&["provision", "host-1"]).await;
    hosts.wait_whole().await;

    // While the other one is down, that is what is said, and what is registered is served.
    hosts.vagrant(&["halt", "host-2"]).await;
    let down = hosts.vagrant(&["provision", "host-1"]).await;
    assert!(down.contains("host-2 is down: etcd answers reads only until `vagrant up host-2`"), "{down}");
    let refused = hosts.vagrant_with(&["ssh", "host-1", "--command", "sudo etcd-member anew"], &[]).await;
    assert!(said(&refused, Some(1)).contains("there is no cluster to join; nothing is changed"), "{refused:?}");

    // The first host, destroyed in this state and brought up alone, cannot know of the cluster that it was in. When the other one
    // comes back, each has a cluster, which `up` and `provision` say.
    hosts.vagrant(&["destroy", "--force", "host-1"]).await;
    let begins = hosts.vagrant(&["up", "host-1"]).await;
    assert!(begins.contains("a cluster that begins here, as host-2 does not answer"), "{begins}");
    for args in [["up", "host-2"], ["provision", "host-2"], ["provision", "host-1"]] {
        let parted = said(&hosts.vagrant_with(&args, &[]).await, Some(1));
        let words = [
            "The etcd of host-",
            " are two clusters",
            "On host-2, to throw its data away and join: sudo etcd-member anew",
        ];
        assert!(words.iter().all(|words| parted.contains(words)), "{args:?}: {parted}");
    }
    let joined = hosts.ssh(2, "sudo etcd-member anew").await;
    assert!(joined.contains("has joined the cluster of host-1"), "{joined}");
    hosts.wait_whole().await;
    let member = hosts.vagrant_with(&["ssh", "host-2", "--command", "sudo etcd-member anew"], &[]).await;
    assert!(said(&member, Some(1)).contains("is a member of the same cluster"), "{member:?}");

    // One that took leave, and was not destroyed after all, is a member again.
    hosts.ssh(2, "sudo etcd-member leave").await;
    let count = format!("curl -sS -m 3 http://{}:2379/v2/members | jq '.members | length'", hosts.ip(1));
    assert_eq!(hosts.look(1, &count).await, "1");
    wait_until(secs(120), "host-2 is a member again", async || match hosts.look(1, &count).await.as_str() {
        "2" => Ok(()),
        seen => Err(format!("{seen} members")),
    })
    .await;
    hosts.wait_whole().await;

    // The first host is no other than the second in this: it joins the cluster that is there.
    hosts.vagrant(&["destroy", "--force", "host-1"]).await;
    hosts.vagrant(&["up", "host-1"]).await;
    hosts.wait_whole().await;
}

async fn bad_input(hosts: &Hosts) {
    hosts
        .ssh(2, "sudo systemctl stop discoverer haproxy && docker run -d --name in-the-way -p 80:8000 local/hello")
        .await;
    let taken = said(&hosts.vagrant_with(&["provision", "host-2"], &[]).await, Some(1));
    assert!(
        taken.contains("Port 80 of this host, which haproxy needs, is taken by the container in-the-way"),
        "{taken}"
    );
    hosts.ssh(2, "docker rm -f in-the-way").await;
    hosts.vagrant(&["provision"]).await;
    hosts.wait_whole().await;

    // The same addresses for another directory.
    let elsewhere = hosts.path("elsewhere");
    let refused = said(&hosts.vagrant_with(&["up", "host-1"], &[("VAGRANT_DOTFILE_PATH", &elsewhere)]).await, Some(1));
    assert!(refused.contains("are there already, brought up from") && refused.contains("HOSTS_NETWORK="), "{refused}");
}

/// Where the user's Vagrant has its plugins, if any. Debian's has those of Debian's packages besides, whatever its home.
fn plugin_home() -> Option<String> {
    let default = || std::env::var("HOME").map(|home| format!("{home}/.vagrant.d"));
    let home = std::env::var("VAGRANT_HOME").or_else(|_| default()).ok()?;
    std::path::Path::new(&home).join("plugins.json").is_file().then_some(home)
}

#[tokio::test]
async fn vagrant_takes_the_vagrantfile_for_each_provider() {
    within(120, async {
        let hosts = Hosts::new();
        let home = plugin_home().unwrap_or_else(|| hosts.path("home"));
        // Only a VirtualBox that is installed can judge its own part of it.
        for (provider, args) in
            [("docker", &["validate"][..]), ("libvirt", &["validate"]), ("virtualbox", &["validate", "-p"])]
        {
            let done =
                hosts.vagrant_with(args, &[("VAGRANT_DEFAULT_PROVIDER", provider), ("VAGRANT_HOME", &home)]).await;
            assert_eq!(done.code, Some(0), "{provider}: {done:?}\nFor libvirt: vagrant plugin install vagrant-libvirt");
            assert!(done.stdout.contains("validated successfully"), "{provider}: {done:?}");
        }
        let status = hosts.vagrant(&["status"]).await;
        assert!(status.contains("host-1") && status.contains("host-2"), "{status}");
    })
    .await;
}

#[test]
fn routes_over_and_under_the_hosts_addresses_are_seen() {
    let line = |destination: &str, mask: &str| {
        route_of(&format!("eth0\t{destination}\t00000000\t0001\t0\t0\t0\t{mask}\t0\t0\t0"))
    };
    let bytes = |bytes: [u8; 4]| format!("{:08X}", u32::from_ne_bytes(bytes));
    let meets = |destination, mask, subnet| line(&bytes(destination), &bytes(mask)).unwrap().meets(subnet);
    assert!(meets([10, 0, 0, 0], [255, 0, 0, 0], "10.70.3"));
    assert!(meets([10, 70, 3, 128], [255, 255, 255, 128], "10.70.3"));
    assert!(meets([10, 70, 3, 0], [255, 255, 255, 0], "10.70.3"));
    assert!(!meets([10, 70, 2, 0], [255, 255, 255, 0], "10.70.3"));
    assert!(!meets([10, 64, 0, 0], [255, 252, 0, 0], "10.70.3"));
    assert!(line("Gateway", "Mask").is_none());
}

/// The end of `vagrant/provision` on a host whose etcd, and all else that it asks, is made of shell functions. `SECONDS` is
/// an ordinary variable, as it is once it has been unset, that nothing but `sleep` turns on: nobody waits, and how fast this machine is does not matter.
/// Gives the exit code, and all that was said.
fn settled(scene: &str) -> (Option<i32>, String) {
    let directory = tempfile::tempdir().unwrap();
    let script = format!(
        r#"
set -euo pipefail
name=host-1 ip=10.1.0.101 other=host-2 other_ip=10.1.0.102 wait_limit=5 program=host-1 again="vagrant provision host-1" root=.
. packaging/lib.sh
. vagrant/settled.sh
member_status={dir}/status joining={dir}/joining
unset SECONDS
SECONDS=0
sleep() {{ SECONDS=$((SECONDS + 1)); }}
docker() {{ :; }}
discoverer_is_ready() {{ true; }}
etcd-member() {{ :; }}
healthy() {{ true; }}
members() {{ printf '["one"]'; }}
get() {{
    case $* in
    *:2379/health) if healthy; then printf '{{"health":"true"}}'; else printf '{{"health":"false"}}'; fi ;;
    *$ip:2380/members) members ;;
    *$other_ip:2380/members) return 7 ;;
    *) printf 'http://%s:2379' "$ip" ;;
    esac
}}
{scene}
check 2>&1
"#,
        dir = directory.path().display()
    );
    let bash = find_program("bash", "bash");
    let done = std::process::Command::new(bash).args(["-c", &script]).current_dir(workspace()).output().unwrap();
    (done.status.code(), String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned())
}

#[test]
fn a_host_is_ready_though_the_other_one_joins_right_after_it_was_seen_healthy() {
    let joins = r"etcd-member() { : >$joining; }
healthy() { [ ! -e $joining ]; }";
    let (code, said) = settled(joins);
    assert!(code == Some(0) && said.contains("host-1 is ready"), "{code:?} {said}");
}

#[test]
fn a_cluster_that_changes_at_the_end_of_the_wait_has_its_time_from_then_on() {
    let healthy_at = |second: u32| format!("healthy() {{ [ $SECONDS -ge {second} ]; }}");
    let joins = r#"members() { if [ $SECONDS -lt 4 ]; then printf '["one"]'; else printf '["one","two"]'; fi; }"#;
    for (scene, code, words) in [
        (healthy_at(8), 1, "The etcd of this host is not healthy after 5 s"),
        (format!("{joins}\n{}", healthy_at(8)), 0, "host-1 is ready"),
        // The other one, which never comes, has had its time too.
        (format!("{joins}\n{}", healthy_at(99)), 0, "host-2 is down: etcd answers reads only"),
    ] {
        let (ended, said) = settled(&scene);
        assert!(ended == Some(code) && said.contains(words), "{scene}: {ended:?} {said}");
    }
}

#[test]
fn a_host_that_waits_says_so_though_what_it_waits_for_comes_right_then() {
    let scene = r#"printf 'Waiting for the etcd of host-2' >"$member_status"
healthy() { false; }
etcd-member() { printf 'Joining the etcd cluster of host-2' >"$member_status"; }"#;
    let (code, said) = settled(scene);
    assert!(code == Some(0) && said.contains("host-1 goes on waiting in the background"), "{code:?} {said}");
    // One whose etcd runs and does not become healthy waits for nobody.
    let (code, said) = settled("printf 'etcd runs' >\"$member_status\"\nhealthy() { false; }");
    assert!(code == Some(1) && said.contains("is not healthy after 5 s: etcd runs"), "{code:?} {said}");
}

#[tokio::test]
async fn vagrant_up_says_what_is_wrong_before_it_makes_anything() {
    within(120, async {
        let hosts = Hosts::new();
        // Whatever this machine has, none of it works.
        let programs = hosts.path("programs");
        std::fs::create_dir(&programs).unwrap();
        for name in ["VBoxManage", "virsh"] {
            std::os::unix::fs::symlink("/bin/false", format!("{programs}/{name}")).unwrap();
        }
        let path = format!("{programs}:{}", std::env::var("PATH").unwrap());
        let wrong = [
            (&[("HOSTS_NETWORK", "10.1.300")][..], "HOSTS_NETWORK=10.1.300: give the first three numbers"),
            (&[("HOSTS_MEMORY", "much")], "HOSTS_MEMORY=much: give a number of MB"),
            (
                &[("VAGRANT_DEFAULT_PROVIDER", ""), ("DOCKER_HOST", "unix:///nowhere"), ("PATH", &path)],
                "No provider works here",
            ),
        ];
        for (variables, words) in wrong {
            let done = hosts.vagrant_with(&["up", "host-1"], variables).await;
            assert!(said(&done, Some(1)).contains(words), "{words}: {done:?}");
        }

        let (state, keys) = (hosts.path("state"), hosts.path("keys"));
        let prepare = async |subnet: &str, memory: &str| {
            let args = ["up", "docker", "host-1", "not_created", memory, &state, &keys];
            let variables = [("HOSTS_NETWORK", subnet)];
            said(&run(&workspace().join("vagrant/prepare"), &args, &variables, secs(60)).await, Some(1))
        };
        let too_much = prepare(&hosts.subnet, "99999999").await;
        assert!(
            too_much.contains("host-1 needs 99999999 MB of memory") && too_much.contains("HOSTS_MEMORY="),
            "{too_much}"
        );

        let other = Network::create(format!("e2e-{}-taken", std::process::id()), &hosts.subnet).await;
        let taken = prepare(&hosts.subnet, "1").await;
        assert!(
            taken.contains(&format!("which its network {} has", other.0)) && taken.contains("HOSTS_NETWORK="),
            "{taken}"
        );

        // Within the network of Docker's own bridge, to which this machine has a route.
        let bridge =
            docker_ok(&["network", "inspect", "bridge", "--format", "{{(index .IPAM.Config 0).Subnet}}"]).await;
        assert!(bridge.trim().ends_with(".0.0/16"), "Docker's bridge is not as Docker makes it: {bridge}");
        let first: Vec<&str> = bridge.split('.').collect();
        let routed = prepare(&format!("{}.{}.5", first[0], first[1]), "1").await;
        assert!(
            routed.contains("This machine has a route to addresses of the hosts' network")
                && routed.contains(&format!("{} dev ", bridge.trim()))
                && routed.contains("HOSTS_NETWORK="),
            "{routed}"
        );
    })
    .await;
}
