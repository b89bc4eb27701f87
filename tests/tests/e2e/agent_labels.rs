//! What labels and flags ask the agent for: names, ports, addresses, settings; and what is refused, with its reason.

use e2e::agent::{Agent, REGISTERED, instances, stays, wait_at, wait_none, wait_one};
use e2e::app::IMAGE;
use e2e::docker::{Docker, docker_ok};
use e2e::etcd::Etcd;
use e2e::history::History;
use e2e::ports::free_port;
use e2e::{secs, wait_until, within};

/// What follows an event of Docker's, on a machine that is busy with other tests.
const SOON: std::time::Duration = secs(20);

/// `--label NAME=VALUE` for each.
fn labels(pairs: &[(&str, &str)]) -> Vec<String> {
    pairs.iter().flat_map(|(name, value)| ["--label".to_owned(), format!("{name}={value}")]).collect()
}

fn as_args(texts: &[String]) -> Vec<&str> {
    texts.iter().map(String::as_str).collect()
}

#[tokio::test]
async fn each_port_has_its_names_and_settings_and_the_ports_own_win() {
    within(60, async {
        let (etcd, docker) = (Etcd::start().await, Docker::for_apps().await);
        let agent = Agent::start(&etcd, &[]);
        let (web, alias, admin) = (docker.service("web"), docker.service("alias"), docker.service("admin"));
        let flags = labels(&[
            ("SERVICE_8000_NAME", &format!("{web},{alias}")),
            ("SERVICE_8001_NAME", &admin),
            ("SERVICE_8002_IGNORE", "yes"),
            ("SERVICE_TAGS", "blue,green"),
            ("SERVICE_WEIGHT", "50"),
            ("SERVICE_8001_WEIGHT", "7"),
            ("SERVICE_HOST", "web.example"),
            ("SERVICE_8001_HOST", "admin.example"),
            ("SERVICE_REGION", "eu"),
            ("SERVICE_8001_HOSTS", "typo.example"),
        ]);
        let published =
            ["--publish", "127.0.0.1::8000", "--publish", "127.0.0.1::8001", "--publish", "127.0.0.1::8002"];
        let app = docker
            .run("app", &[&published[..], &["--env", "LISTEN=8000,8001,8002"], &as_args(&flags), &[IMAGE]].concat())
            .await;
        for (service, port, weight, host) in
            [(&web, 8000, 50, "web.example"), (&alias, 8000, 50, "web.example"), (&admin, 8001, 7, "admin.example")]
        {
            let one = wait_at(&etcd, service, app.published(port).await, REGISTERED).await;
            assert_eq!(one.record["weight"], weight, "{one:?}");
            assert_eq!(one.record["tags"], serde_json::json!(["blue", "green"]));
            assert_eq!((one.attribute("host"), one.attribute("region")), (host, "eu"));
        }
        // What may be mistyped is an attribute, and told once.
        let told = agent.logged(&["label is no setting", "SERVICE_8001_HOSTS", "meant"]);
        assert!(told.len() == 1 && told[0].contains("SERVICE_8001_HOST\""), "{told:?}");
        // The third port is nowhere.
        let ignored = format!(":{}", app.published(8002).await.port());
        let all = etcd.get("/service").await.unwrap().to_string();
        assert!(!all.contains(&ignored), "{all}");
    })
    .await;
}

#[tokio::test]
async fn the_environment_counts_as_labels_do_and_a_label_wins() {
    within(60, async {
        let (etcd, docker) = (Etcd::start().await, Docker::for_apps().await);
        let _agent = Agent::start(&etcd, &[]);
        let (variable, label) = (format!("SERVICE_NAME={}", docker.service("env")), docker.service("web"));
        let app = docker.app("web", &["--env", &variable, "--env", "SERVICE_REGION=eu"]).await;
        let one = wait_at(&etcd, &label, app.published(8000).await, REGISTERED).await;
        assert_eq!(one.attribute("region"), "eu");
        assert_eq!(instances(etcd.address(), &docker.service("env")).await.len(), 0);
        let flags = ["--publish", "127.0.0.1::8000", "--env", &variable, IMAGE];
        let app = docker.run("env", &flags).await;
        wait_at(&etcd, &docker.service("env"), app.published(8000).await, REGISTERED).await;
    })
    .await;
}

#[tokio::test]
async fn one_who_does_not_ask_is_registered_only_without_explicit_and_one_who_says_ignore_never() {
    within(60, async {
        let (etcd, docker) = (Etcd::start().await, Docker::for_apps().await);
        // The default name is that of the image, and every test's containers have this one.
        let plain = docker.run("plain", &["--publish", "127.0.0.1::8000", IMAGE]).await;
        let ignore = docker.app("ignore", &["--label", "SERVICE_IGNORE=true"]).await;
        let published = plain.published(8000).await.to_string();
        let is_in = async || instances(etcd.address(), "app").await.iter().any(|one| one.address == published);

        let mut agent = Agent::start(&etcd, &[]);
        let other = docker.app("other", &[]).await;
        wait_at(&etcd, &docker.service("other"), other.published(8000).await, REGISTERED).await;
        assert!(!is_in().await);
        let said = agent.explain(plain.id()).await;
        assert!(said.code == Some(1) && said.stdout.contains("--explicit"), "{said:?}");
        agent.stop().await;

        let agent = Agent::start(&etcd, &["no --explicit"]);
        wait_until(REGISTERED, "it is registered by the image's name", async || {
            if is_in().await { Ok(()) } else { Err(format!("{:?}", instances(etcd.address(), "app").await)) }
        })
        .await;
        assert_eq!(instances(etcd.address(), &docker.service("ignore")).await.len(), 0);
        let said = agent.explain(ignore.id()).await;
        assert!(said.code == Some(1) && said.stdout.contains("SERVICE_IGNORE"), "{said:?}");
    })
    .await;
}

#[tokio::test]
async fn the_address_is_the_labels_else_the_flags_else_the_published_one() {
    within(60, async {
        let (etcd, docker) = (Etcd::start().await, Docker::for_apps().await);
        let mut agent = Agent::start(&etcd, &["--ip", "127.0.0.9"]);
        let label = docker.app("label", &["--label", "SERVICE_IP=127.0.0.7"]).await;
        let flag = docker.app("flag", &[]).await;
        for (app, name, ip) in [(&label, "label", "127.0.0.7"), (&flag, "flag", "127.0.0.9")] {
            let one = wait_one(&etcd, &docker.service(name), REGISTERED).await;
            assert_eq!(one.address, format!("{ip}:{}", app.published(8000).await.port()));
        }
        agent.stop().await;
        // Without the flag: this host's loopback is nothing that other hosts could reach.
        let agent = Agent::start(&etcd, &["no --ip"]);
        wait_one(&etcd, &docker.service("label"), REGISTERED).await;
        stays(&etcd, &docker.service("flag"), 0, secs(1)).await;
        let said = agent.explain(flag.id()).await;
        assert!(
            said.code == Some(1) && said.stdout.contains("127.0.0.1 alone") && said.stdout.contains("SERVICE_IP"),
            "{said:?}"
        );
    })
    .await;
}

#[tokio::test]
async fn a_container_on_the_hosts_network_is_registered_at_its_port() {
    within(60, async {
        let (etcd, docker) = (Etcd::start().await, Docker::for_apps().await);
        let _agent = Agent::start(&etcd, &[]);
        let (port, web) = (free_port(), docker.service("web"));
        let (listen, name) = (format!("LISTEN={port}"), format!("SERVICE_{port}_NAME={web}"));
        let flags = ["--network", "host", "--env", &listen, "--label", &name, IMAGE];
        let app = docker.run("web", &flags).await;
        let one = wait_one(&etcd, &web, REGISTERED).await;
        assert_eq!((one.address, &one.record["id"]), (format!("127.0.0.1:{port}"), &app.id().into()));
        app.tell("kill").await;
        wait_none(&etcd, &web, SOON).await;
    })
    .await;
}

#[tokio::test]
async fn internal_means_the_containers_own_address_in_the_network_as_long_as_it_is_in_it() {
    within(60, async {
        let (etcd, docker) = (Etcd::start().await, Docker::for_apps().await);
        let network = docker.network("net").await;
        let _agent = Agent::start(&etcd, &["no --ip", "--internal", "--network", &network]);
        let web = docker.service("web");
        let name = format!("SERVICE_8000_NAME={web}");
        let app = docker.run("web", &["--expose", "8000", "--label", &name, IMAGE]).await;
        stays(&etcd, &web, 0, secs(1)).await;
        docker_ok(&["network", "connect", &network, app.id()]).await;
        let format = format!("{{{{(index .NetworkSettings.Networks \"{network}\").IPAddress}}}}");
        let ip = docker_ok(&["inspect", "--format", &format, app.id()]).await;
        wait_at(&etcd, &web, format!("{}:8000", ip.trim()).parse().unwrap(), REGISTERED).await;
        docker_ok(&["network", "disconnect", &network, app.id()]).await;
        wait_none(&etcd, &web, SOON).await;
    })
    .await;
}

#[tokio::test]
async fn one_who_shares_anothers_network_is_registered_at_the_others_ports() {
    within(60, async {
        let (etcd, docker) = (Etcd::start().await, Docker::for_apps().await);
        let _agent = Agent::start(&etcd, &[]);
        let host = docker.run("host", &["--publish", "127.0.0.1::8000", "--env", "LISTEN=", IMAGE]).await;
        let (network, web) = (format!("container:{}", host.id()), docker.service("web"));
        let name = format!("SERVICE_8000_NAME={web}");
        let app = docker.run("web", &["--network", &network, "--label", &name, IMAGE]).await;
        let one = wait_at(&etcd, &web, host.published(8000).await, REGISTERED).await;
        assert_eq!(one.record["id"], app.id());
        app.tell("kill").await;
        wait_none(&etcd, &web, SOON).await;
    })
    .await;
}

#[tokio::test]
async fn udp_is_left_out_with_a_reason() {
    within(60, async {
        let (etcd, docker) = (Etcd::start().await, Docker::for_apps().await);
        let agent = Agent::start(&etcd, &[]);
        let (app, web) = (docker.app("web", &["--publish", "127.0.0.1::53/udp"]).await, docker.service("web"));
        wait_until(REGISTERED, "the TCP port is registered", async || {
            // With two ports published, the name may have the port behind it.
            let all = etcd.get("/service").await.map(|node| node.to_string()).unwrap_or_default();
            let port = app.published(8000).await.port();
            if all.contains(&web) && all.contains(&format!(":{port}")) { Ok(()) } else { Err(all) }
        })
        .await;
        let said = agent.explain(app.id()).await;
        assert!(said.stdout.contains("53/udp"), "{said:?}");
    })
    .await;
}

#[tokio::test]
async fn hostile_labels_leave_the_others_untouched_and_are_named() {
    within(90, async {
        let (etcd, docker) = (Etcd::start().await, Docker::for_apps().await);
        let agent = Agent::start(&etcd, &["--log-level", "debug"]);
        let history = History::start(etcd.address()).await;
        let hostile = [
            ("SERVICE_NAME", "../../etc x"),
            ("SERVICE_NAME", "_discoverers"),
            ("SERVICE_NAME", "web\n127.0.0.1:1 #"),
            ("SERVICE_WEIGHT", "999999"),
            ("SERVICE_IP", "0.0.0.0"),
            ("SERVICE_CHECK_INTERVAL", "never"),
            ("SERVICE_CHECK_HTTP", "/ HTTP/1.1\r\nX: y"),
            ("SERVICE_REGION", "eu\n  http-request deny"),
        ];
        let mut containers = Vec::new();
        for (number, (name, value)) in hostile.iter().enumerate() {
            let label = format!("{name}={value}");
            containers.push((docker.app(&format!("bad-{number}"), &["--label", &label]).await, name));
        }
        let (app, web) = (docker.app("web", &[]).await, docker.service("web"));
        wait_at(&etcd, &web, app.published(8000).await, REGISTERED).await;
        for (container, name) in &containers {
            let said = agent.explain(container.id()).await;
            let no = said.stdout.lines().find(|line| line.starts_with("-> NO"));
            assert!(said.code == Some(1) && no.is_some_and(|line| line.contains(*name)), "{name}: {said:?}");
        }
        for event in history.of("") {
            let parts: Vec<&str> = event.key.split('/').collect();
            assert!(parts.len() == 4 && !event.key.contains(char::is_whitespace), "{event:?}");
            assert!(!event.value.contains("deny"), "{event:?}");
        }
        for (number, (_, name)) in containers.iter().enumerate() {
            let container = format!("bad-{number}");
            assert!(!agent.logged(&["WARN", "not registered", &container, name]).is_empty(), "{container}: {name}");
        }
        app.tell("kill").await;
        wait_none(&etcd, &web, SOON).await;
    })
    .await;
}

#[tokio::test]
async fn the_labels_of_other_proxies_are_read() {
    within(60, async {
        let (etcd, docker) = (Etcd::start().await, Docker::for_apps().await);
        let _agent = Agent::start(&etcd, &["--domains", "*.example"]);
        let virtual_host = [
            ("SERVICE_8001_IGNORE", "true"),
            ("VIRTUAL_HOST", "nginx.example"),
            ("VIRTUAL_PORT", "8000"),
            ("VIRTUAL_PATH", "/shop"),
        ];
        let traefik = [
            ("traefik.enable", "true"),
            ("traefik.http.routers.web.rule", "Host(`traefik.example`) && PathPrefix(`/api`)"),
            ("traefik.http.services.web.loadbalancer.server.port", "8000"),
            ("traefik.http.services.web.loadbalancer.healthcheck.path", "/well"),
        ];
        let outside = [("SERVICE_HOST", "bank.invalid")];
        for (name, pairs, host) in [
            ("nginx", &virtual_host[..], Some(("nginx.example", "/shop"))),
            ("traefik", &traefik, Some(("traefik.example", "/api"))),
            ("outside", &outside, None),
        ] {
            let app = docker.app(name, &as_args(&labels(pairs))).await;
            match host {
                Some((host, path)) => {
                    let one = wait_at(&etcd, &docker.service(name), app.published(8000).await, REGISTERED).await;
                    assert_eq!((one.attribute("host"), one.attribute("path")), (host, path), "{one:?}");
                }
                None => stays(&etcd, &docker.service(name), 0, secs(1)).await,
            }
        }
    })
    .await;
}
