//! The README's first command, as a newcomer runs it, on ports and under a project name of its own.

use std::net::SocketAddr;

use e2e::docker::{IMAGE_NAMES, Images, docker, docker_ok};
use e2e::http;
use e2e::load::{Load, requests};
use e2e::ports::free_port;
use e2e::process::{Finished, run};
use e2e::{secs, wait_until, within, workspace};

struct Demo {
    project: String,
    http_port: u16,
    variables: Vec<(String, String)>,
}

impl Demo {
    fn new() -> Demo {
        let project = format!("e2edemo{}", std::process::id());
        let http_port = free_port();
        let variables = [
            ("COMPOSE_PROJECT_NAME", project.clone()),
            ("HTTP_PORT", http_port.to_string()),
            ("ETCD_ADDRESS", format!("127.0.0.1:{}", free_port())),
            ("STATS_ADDRESS", format!("127.0.0.1:{}", free_port())),
            ("ADMIN_ADDRESS", format!("127.0.0.1:{}", free_port())),
        ];
        Demo { project, http_port, variables: variables.map(|(name, value)| (name.to_owned(), value)).to_vec() }
    }

    async fn run(&self, args: &[&str]) -> Finished {
        let variables: Vec<(&str, &str)> = self.variables.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        run(&workspace().join("demo"), args, &variables, secs(500)).await
    }

    fn http(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.http_port))
    }

    /// The agent's part: registered from its labels, answered by its host name and no other, and listed.
    async fn has_a_plain_image_on_its_own_host_name(&self, said: &str) {
        let hello = self.container("hello").await;
        let answer = http::get_host(self.http(), "hello.localhost").await.unwrap();
        assert_eq!((answer.status, answer.body), (200, format!("Hello from {hello}\n")));
        let seen = requests(self.http(), 8).await;
        assert!(!seen.contains_key(&format!("Hello from {hello}\n")), "{seen:?}");
        let agent = self.container("agent").await;
        let list = docker_ok(&["exec", &agent, "registrar", "list"]).await;
        let line = list.lines().find(|line| line.contains("hello")).unwrap_or_else(|| panic!("{list}"));
        assert!(line.contains("running") && (line.contains("hello_1") || line.contains("hello-1")), "{list}");
        assert!(said.contains(line.split_whitespace().nth(1).unwrap()), "./demo shows it too: {said}");
        self.shows_it_on_the_page(&hello).await;
        // It goes with its container.
        docker_ok(&["stop", &hello]).await;
        wait_until(secs(10), "nobody answers for it", async || {
            match http::get_host(self.http(), "hello.localhost").await {
                Ok(reply) if reply.status == 503 => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
        docker_ok(&["start", &hello]).await;
        wait_until(secs(20), "it is back", async || match http::get_host(self.http(), "hello.localhost").await {
            Ok(reply) if reply.status == 200 => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
    }

    /// The page, and what is said beside HAProxy.
    async fn shows_it_on_the_page(&self, container: &str) {
        let (_, admin) = self.variables.iter().find(|(name, _)| name == "ADMIN_ADDRESS").unwrap();
        let page = http::get(admin.parse().unwrap(), "/").await.unwrap();
        assert!(page.status == 200 && page.body.contains(container), "{}", page.body);
        let haproxy = self.container("haproxy").await;
        // What comes and goes of other tests' containers meanwhile is in it too.
        wait_until(secs(30), "discoverer status says that all is well", async || {
            let status = docker(&["exec", &haproxy, "discoverer", "status"]).await;
            let is_well = status.code == Some(0) && status.stdout.contains("All is well.");
            if is_well { Ok(()) } else { Err(format!("{status:?}")) }
        })
        .await;
        let explained = docker_ok(&["exec", &haproxy, "discoverer", "explain", "hello"]).await;
        assert!(explained.contains("hello") && !explained.contains("NO"), "{explained}");
    }

    /// The short id of the only container of a service.
    async fn container(&self, service: &str) -> String {
        let project = format!("label=com.docker.compose.project={}", self.project);
        let service = format!("label=com.docker.compose.service={service}");
        let listed = docker_ok(&["ps", "--quiet", "--filter", &project, "--filter", &service]).await;
        listed.trim().to_owned()
    }

    /// What of it Docker knows: `ps`, `network` or `volume` by the project's label.
    async fn left(&self, list: &[&str]) -> String {
        let filter = format!("label=com.docker.compose.project={}", self.project);
        docker_ok(&[list, &["--quiet", "--filter", &filter]].concat()).await
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        // What a failed test left is removed without the program that may have failed.
        let project = &self.project;
        let filter = format!("label=com.docker.compose.project={project}");
        let script = format!(
            "docker ps -aq --filter {filter} | xargs -r docker rm -fv; docker network ls -q --filter {filter} | xargs -r docker network rm; \
             docker volume ls -q --filter {filter} | xargs -r docker volume rm"
        );
        let _tried = std::process::Command::new("sh").args(["-c", &script]).output();
    }
}

#[tokio::test]
async fn the_demo_ends_with_answers_from_several_containers_and_down_removes_it_all() {
    let demo = Demo::new();
    // What takes long comes first, while the other tests still use the images; from then on they are this test's alone.
    let built = demo.run(&["build"]).await;
    assert_eq!(built.code, Some(0), "{}\n{}", built.stdout, built.stderr);
    let images = Images::alone().await;
    within(240, async {
        let up = demo.run(&["--scale", "2"]).await;
        assert_eq!(up.code, Some(0), "{}\n{}", up.stdout, up.stderr);
        assert!(up.stdout.contains("Hello from") && up.stdout.contains("= running"), "{}", up.stdout);
        let seen = requests(demo.http(), 8).await;
        assert_eq!(seen.len(), 2, "{seen:?}");
        demo.has_a_plain_image_on_its_own_host_name(&up.stdout).await;

        let load = Load::start(demo.http());
        load.wait_served(50).await;
        let filter = format!("label=com.docker.compose.project={}", demo.project);
        let web =
            docker_ok(&["ps", "--quiet", "--filter", &filter, "--filter", "label=com.docker.compose.service=web"])
                .await;
        let first = web.lines().next().unwrap();
        docker_ok(&["stop", first]).await;
        let stopped = format!("Hello from {first}\n");
        let seen = requests(demo.http(), 8).await;
        assert!(seen.len() == 1 && !seen.contains_key(&stopped), "{seen:?} after {first} was stopped");
        docker_ok(&["start", first]).await;
        wait_until(secs(30), "the started one is back", async || {
            let seen = requests(demo.http(), 4).await;
            if seen.contains_key(&stopped) { Ok(()) } else { Err(format!("{seen:?}")) }
        })
        .await;
        load.stop_after(100).await.assert_no_failure(100);

        let again = demo.run(&["--scale", "2"]).await;
        assert_eq!(again.code, Some(0), "a second run: {}\n{}", again.stdout, again.stderr);

        let down = demo.run(&["down", "--keep-base"]).await;
        assert_eq!(down.code, Some(0), "{}\n{}", down.stdout, down.stderr);
        for list in [&["ps", "--all"][..], &["network", "ls"], &["volume", "ls"]] {
            assert_eq!(demo.left(list).await, "", "docker {list:?} after ./demo down:\n{}", down.stdout);
        }
        for image in IMAGE_NAMES {
            let is_there = docker(&["image", "inspect", image]).await.code == Some(0);
            assert!(!is_there || down.stdout.contains(&format!("{image} stays")), "{image}: {}", down.stdout);
        }
    })
    .await;
    drop(images);
}

#[tokio::test]
async fn the_demo_says_what_is_wrong_with_its_arguments() {
    within(60, async {
        let demo = Demo::new();
        for (args, word) in [(&["sideways"][..], "sideways"), (&["--scale", "many"], "many"), (&["--scale"], "--scale")]
        {
            let done = demo.run(args).await;
            assert_eq!(done.code, Some(2), "{args:?}: {done:?}");
            assert!(done.stderr.contains(word), "{args:?}: {done:?}");
        }
        let help = demo.run(&["--help"]).await;
        assert!(help.code == Some(0) && help.stdout.contains("./demo down"), "{help:?}");
    })
    .await;
}

#[tokio::test]
async fn the_demo_on_one_host_without_etcd_serves_labelled_containers_and_down_removes_it_all() {
    let demo = Demo::new();
    let built = demo.run(&["build", "--standalone"]).await;
    assert_eq!(built.code, Some(0), "{}\n{}", built.stdout, built.stderr);
    let images = Images::alone().await;
    within(600, async {
        let up = demo.run(&["--standalone", "--scale", "2"]).await;
        assert_eq!(up.code, Some(0), "{}\n{}", up.stdout, up.stderr);
        assert_eq!(requests(demo.http(), 8).await.len(), 2);
        let hello = demo.container("hello").await;
        let answer = http::get_host(demo.http(), "hello.localhost").await.unwrap();
        assert_eq!((answer.status, answer.body), (200, format!("Hello from {hello}\n")));
        assert!(up.stdout.contains("standalone list") && up.stdout.contains("running"), "{}", up.stdout);
        let standalone = demo.container("standalone").await;
        // The host is found by itself: it is where the container's gateway is.
        let explained = docker_ok(&["exec", &standalone, "standalone", "explain", &hello]).await;
        assert!(explained.contains("From Docker") && !explained.contains("NO"), "{explained}");

        let load = Load::start(demo.http());
        load.wait_served(50).await;
        let web = demo.container("web").await;
        docker_ok(&["stop", web.lines().next().unwrap()]).await;
        // The plain application ends at once when it is told to: what each client had asked it right then may be lost, and no more.
        let report = load.stop_after(150).await;
        assert!(report.served() >= 150 && report.failures.len() <= 4, "{report:?}");

        let down = demo.run(&["down", "--keep-base"]).await;
        assert_eq!(down.code, Some(0), "{}\n{}", down.stdout, down.stderr);
        for list in [&["ps", "--all"][..], &["network", "ls"], &["volume", "ls"]] {
            assert_eq!(demo.left(list).await, "", "{list:?}");
        }
    })
    .await;
    drop(images);
}
