//! What recorded and made-up containers come to.

use super::*;
use proptest::prelude::*;
use std::collections::HashMap;
use std::time::Duration;

/// Names and values.
type Pairs<'a> = &'a [(&'a str, &'a str)];

fn recorded(name: &str) -> ContainerInspectResponse {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/docker-20.10.24");
    serde_json::from_str(&std::fs::read_to_string(format!("{path}/inspect-{name}.json")).unwrap()).unwrap()
}

fn scope() -> Scope {
    Scope {
        prefix: "service".parse().unwrap(),
        agent: "agent-1".to_owned(),
        host_name: "host-1".to_owned(),
        ip: None,
        default_address: DefaultAddress { v4: Some([10, 1, 0, 101].into()), v6: None },
        explicit: false,
        internal: false,
        network: None,
        domains: Domains::any(),
        allow_exec: false,
        check: CheckFlags { interval: Duration::from_secs(5), timeout: Duration::from_secs(3), rise: 1, fall: 3 },
    }
}

/// A container that publishes these ports on all addresses, each at 40000 more, with these labels.
fn with(ports: &[u16], labels: &[(&str, &str)]) -> ContainerInspectResponse {
    let mut container = recorded("owner");
    let binding = |port: u16| {
        let host_port = (40_000 + u32::from(port)).to_string();
        let binding = bollard::models::PortBinding { host_ip: Some("0.0.0.0".to_owned()), host_port: Some(host_port) };
        (format!("{port}/tcp"), Some(vec![binding]))
    };
    container.network_settings.as_mut().unwrap().ports = Some(ports.iter().copied().map(binding).collect());
    let config = container.config.as_mut().unwrap();
    config.exposed_ports = None;
    config.env = None;
    config.labels = Some(labels.iter().map(|(label, value)| ((*label).to_owned(), (*value).to_owned())).collect());
    container
}

fn variables(mut container: ContainerInspectResponse, variables: &[&str]) -> ContainerInspectResponse {
    container.config.as_mut().unwrap().env = Some(variables.iter().map(|&variable| variable.to_owned()).collect());
    container
}

/// The paths of the keys, and the refusals.
fn shown(findings: &Findings) -> (Vec<String>, Vec<String>) {
    let keys = findings.registrations.iter().map(|registration| registration.key.path()).collect();
    (keys, findings.refusals.iter().map(Refusal::to_string).collect())
}

fn keys(container: &ContainerInspectResponse, scope: &Scope) -> Vec<String> {
    shown(&services(container, None, scope)).0
}

fn labelled(ports: &[u16], labels: &[(&str, &str)]) -> Findings {
    services(&with(ports, labels), None, &scope())
}

/// The attributes of the only registration.
fn attributes(findings: &Findings) -> Vec<(&str, &str)> {
    let [only] = findings.registrations.as_slice() else { panic!("{:?}", shown(findings)) };
    only.record.attributes.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
}

#[test]
fn a_recorded_container_with_labels_becomes_a_whole_registration() {
    let container = recorded("labels");
    let findings = services(&container, None, &scope());
    let [found] = findings.registrations.as_slice() else { panic!("{findings:?}") };
    let ports = container.network_settings.as_ref().unwrap().ports.as_ref().unwrap();
    let host_port = ports["8000/tcp"].as_ref().unwrap()[0].host_port.as_ref().unwrap();
    assert_eq!(found.key.path(), format!("/service/shop/10.1.0.101:{host_port}"));
    assert_eq!((found.port, found.address_from), (8000, AddressSource::DefaultRoute));
    let record = &found.record;
    assert_eq!(record.id, container.id);
    assert_eq!((record.agent.as_deref(), record.host.as_deref()), (Some("agent-1"), Some("host-1")));
    assert_eq!((record.name.as_deref(), record.weight), (Some("web-labels"), Some(30)));
    assert_eq!(record.tags, ["blue", "v1"]);
    let started = container.state.as_ref().unwrap().started_at.as_ref().unwrap().parse().unwrap();
    assert_eq!(record.registered, Some(started));
    let expected = [("check_http", "/health"), ("host", "shop.example"), ("region", "eu")];
    assert_eq!(attributes(&findings), expected);
    let CheckKind::Http(check) = &found.check.kind else { panic!("{:?}", found.check) };
    assert_eq!((check.path.as_str(), check.method.as_str(), check.tls), ("/health", "GET", false));
    assert_eq!(check.headers["host"], "shop.example");
    assert_eq!(check.expected, Expected::Below500);
    let targets: Vec<_> = check.targets.iter().map(ToString::to_string).collect();
    assert_eq!(targets, [found.key.address().to_string(), "172.17.0.2:8000".to_owned()]);
    assert_eq!((found.check.interval.as_secs(), found.check.fall), (5, 3));
    assert_eq!(shown(&findings).1, ["port 9000/udp: only TCP ports are registered"]);
    assert!(findings.refusals[0].is_by_choice());
}

#[test]
fn recorded_containers_come_to_what_their_state_and_network_allow() {
    let internal = Scope { internal: true, ..scope() };
    let front = Scope { network: Some("front".to_owned()), ..internal.clone() };
    let other = Scope { network: Some("other".to_owned()), ..internal.clone() };
    let cases = [
        ("paused", &scope(), "it is not running: it is paused"),
        ("exited", &scope(), "it is not running: it is exited"),
        ("created", &scope(), "port 8000: it is exposed but not published: start the container with `-p 8000`"),
        ("exposed", &scope(), "exposed but not published"),
        ("none", &scope(), "it publishes no port: start it with `-p PORT`"),
        ("networks", &scope(), "exposed but not published"),
        ("networks", &internal, "it is in several networks (back, front): say which is meant with `--network NAME`"),
        ("networks", &front, "/service/web/172.18.0.2:8000"),
        ("networks", &other, "\"other\" of --network; it is in back, front"),
        ("labels", &internal, "/service/shop/172.17.0.2:8000"),
        ("host-exposed", &scope(), "/service/web/10.1.0.101:8000"),
        ("host", &scope(), "it says no port: name one with a label SERVICE_<port>_NAME"),
        ("named", &scope(), "published on 127.0.0.6 alone, where only this host reaches it"),
        ("any", &scope(), "/service/web/10.1.0.101:"),
    ];
    for (name, scope, expected) in cases {
        let (keys, refusals) = shown(&services(&recorded(name), None, scope));
        let all = [keys, refusals].concat();
        assert!(all.iter().any(|line| line.starts_with(expected) || line.contains(expected)), "{name}: {all:#?}");
    }
}

#[test]
fn who_shares_the_network_of_another_container_has_the_ports_that_it_names_itself() {
    let (owner, container) = (recorded("owner"), recorded("shares"));
    let ports = owner.network_settings.as_ref().unwrap().ports.as_ref().unwrap();
    let host_port = ports["8000/tcp"].as_ref().unwrap()[0].host_port.as_ref().unwrap();
    let findings = services(&container, Some(&owner), &scope());
    assert_eq!(shown(&findings).0, [format!("/service/web/10.1.0.101:{host_port}")]);
    assert_eq!(findings.registrations[0].record.id, container.id);
    let refusals = shown(&services(&container, None, &scope())).1;
    assert_eq!(refusals, ["it uses the network of another container, which Docker does not know (any more)"]);
    let mut silent = container.clone();
    silent.config.as_mut().unwrap().exposed_ports = None;
    let findings = services(&silent, Some(&owner), &scope());
    assert!(findings.refusals[0].is_by_choice() && shown(&findings).1[0].starts_with("it says no port"));
    let internal = Scope { internal: true, ..scope() };
    assert_eq!(shown(&services(&container, Some(&owner), &internal)).0, ["/service/web/172.17.0.5:8000"]);
}

#[test]
fn several_ports_are_several_services_and_ipv4_goes_before_ipv6() {
    let container = recorded("ports");
    let ports = container.network_settings.as_ref().unwrap().ports.as_ref().unwrap();
    let of = |port: &str| ports[port].as_ref().unwrap()[0].host_port.clone().unwrap();
    let (keys, refusals) = shown(&services(&container, None, &scope()));
    let expected = [
        format!("/service/web-8000/10.1.0.101:{}", of("8000/tcp")),
        format!("/service/web-8443/10.1.0.101:{}", of("8443/tcp")),
    ];
    assert_eq!(keys, expected);
    assert!(refusals[1].contains("port 9100: published on 127.0.0.1 alone"), "{refusals:?}");
    let v6 = Scope { ip: Some("2001:db8::1".parse().unwrap()), ..scope() };
    let v6_port = ports["8000/tcp"].as_ref().unwrap()[1].host_port.clone().unwrap();
    assert!(self::keys(&container, &v6).contains(&format!("/service/web-8000/[2001:db8::1]:{v6_port}")));
}

#[test]
fn what_is_said_of_one_port_wins_over_what_is_said_of_all_and_a_label_over_a_variable() {
    let labels = [("SERVICE_NAME", "web"), ("SERVICE_80_TAGS", "a"), ("SERVICE_TAGS", "b"), ("SERVICE_X", "label")];
    let container =
        variables(with(&[80], &labels), &["SERVICE_X=variable", "SERVICE_80_Y=port", "SERVICE_Y=all", "PATH=x"]);
    let findings = services(&container, None, &scope());
    assert_eq!(findings.registrations[0].record.tags, ["a"]);
    assert_eq!(attributes(&findings), [("x", "label"), ("y", "port")]);
    // An empty label takes away what a variable says.
    let container = variables(with(&[80], &[("SERVICE_X", "")]), &["SERVICE_X=variable"]);
    assert_eq!(attributes(&services(&container, None, &scope())), []);
    let container = variables(with(&[80], &[("SERVICE_80_IGNORE", "")]), &["SERVICE_80_IGNORE=1"]);
    assert_eq!(keys(&container, &scope()), ["/service/web/10.1.0.101:40080"]);
}

#[test]
fn services_are_called_as_they_are_labelled_else_by_their_host_else_by_their_image() {
    let cases: [(&[u16], Pairs<'_>, &[&str]); 13] = [
        (&[80], &[], &["web"]),
        (&[80, 443], &[], &["web-443", "web-80"]),
        (&[80], &[("SERVICE_NAME", "shop")], &["shop"]),
        (&[80, 443], &[("SERVICE_NAME", "shop")], &["shop-443", "shop-80"]),
        (&[80, 443], &[("SERVICE_80_NAME", "shop")], &["shop", "web-443"]),
        (&[80, 443], &[("SERVICE_NAME", "shop"), ("SERVICE_443_IGNORE", "yes")], &["shop"]),
        (&[80], &[("SERVICE_NAME", "a, b ,a")], &["a", "b"]),
        (&[80, 443], &[("SERVICE_80_NAME", "a,b"), ("SERVICE_443_NAME", "a")], &["a", "a", "b"]),
        (&[80], &[("SERVICE_HOST", "Shop.example,b.example")], &["b.example"]),
        (&[80], &[("SERVICE_HOST", "a.example"), ("SERVICE_PATH", "/api/v1/")], &["a.example-api-v1"]),
        (&[80, 443], &[("SERVICE_80_HOST", "a.example")], &["a.example", "web-443"]),
        (&[80, 443], &[("SERVICE_HOST", "a.example")], &["a.example-443", "a.example-80"]),
        (&[80], &[("SERVICE_PATH", "/api")], &["web"]),
    ];
    for (ports, labels, expected) in cases {
        let findings = labelled(ports, labels);
        let mut names: Vec<_> = findings.registrations.iter().map(|found| found.key.service().as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, expected, "{labels:?} {:?}", findings.refusals);
    }
    let images = [
        ("nginx", Some("nginx")),
        ("nginx:1.27", Some("nginx")),
        ("library/nginx@sha256:0000", Some("nginx")),
        ("localhost:5000/team/web:1@sha256:0000", Some("web")),
        ("sha256:f8edf81e7542", None),
        (&"ab".repeat(32), None),
        ("", None),
    ];
    for (image, expected) in images {
        assert_eq!(image_name(image), expected, "{image}");
    }
    let mut container = with(&[80], &[("com.docker.compose.service", "app")]);
    container.config.as_mut().unwrap().image = Some("sha256:f8edf81e7542".to_owned());
    assert_eq!(keys(&container, &scope()), ["/service/app/10.1.0.101:40080"]);
    container.config.as_mut().unwrap().labels = None;
    let refusals = shown(&services(&container, None, &scope())).1;
    assert_eq!(refusals, ["port 80: its image has no name: name the service with SERVICE_NAME"]);
}

#[test]
fn ignored_containers_and_ports_are_left_out_by_choice() {
    for labels in [[("SERVICE_IGNORE", "true")], [("SERVICE_IGNORE", "0")], [("traefik.enable", "false")]] {
        let findings = labelled(&[80], &labels);
        assert_eq!(findings.registrations, [], "{labels:?}");
        assert!(findings.refusals[0].is_by_choice() && findings.refusals[0].to_string().contains(labels[0].0));
    }
    let findings = labelled(&[80, 443], &[("SERVICE_443_IGNORE", "1")]);
    assert_eq!(shown(&findings).1, ["port 443: SERVICE_443_IGNORE=\"1\": this label says so"]);
    let findings = labelled(&[80], &[("traefik.enable", "false"), ("SERVICE_NAME", "web")]);
    assert_eq!(findings.registrations.len(), 1, "somebody asks for it by name");
}

#[test]
fn a_label_that_is_almost_a_setting_is_an_attribute_and_told_also_of_a_container_that_is_not_registered() {
    let findings =
        labelled(&[80], &[("SERVICE_HOSTS", "a.example"), ("SERVICE_80_WIEGHT", "7"), ("SERVICE_REGION", "eu")]);
    assert_eq!(attributes(&findings), [("hosts", "a.example"), ("region", "eu"), ("wieght", "7")]);
    let is = |label: &str, meant: &str| {
        format!("{label}: no setting is called so, and it is the attribute that its name says; is {meant} meant?")
    };
    let told = [is("SERVICE_80_WIEGHT=\"7\"", "SERVICE_80_WEIGHT"), is("SERVICE_HOSTS=\"a.example\"", "SERVICE_HOST")];
    assert_eq!(shown(&findings).1, told);
    let explicit = Scope { explicit: true, ..scope() };
    let (keys, refusals) = shown(&services(&with(&[80], &[("SERVICE_NAMES", "web")]), None, &explicit));
    assert!(
        keys.is_empty() && refusals[0].contains("is SERVICE_NAME meant?") && refusals[1].contains("--explicit"),
        "{refusals:?}"
    );
    // A variable of a container that nobody wants registered is its application's.
    let foreign = variables(with(&[80], &[]), &["SERVICE_TAG=7"]);
    let of_variable = |scope: &Scope| shown(&services(&foreign, None, scope)).1;
    assert!(of_variable(&scope()).iter().any(|told| told.contains("is SERVICE_TAGS meant?")));
    assert!(!of_variable(&explicit).iter().any(|told| told.contains("meant?")));
    let hidden = variables(with(&[80], &[("SERVICE_HOSTS", "")]), &["SERVICE_HOSTS=a.example"]);
    assert_eq!(shown(&services(&hidden, None, &scope())).1, [""; 0]);
}

#[test]
fn with_explicit_only_ports_that_are_asked_for_are_registered() {
    let explicit = Scope { explicit: true, ..scope() };
    let cases: [(Pairs<'_>, &[u16]); 8] = [
        (&[], &[]),
        (&[("SERVICE_TAGS", "a")], &[]),
        (&[("SERVICE_NAME", "web")], &[80, 443]),
        (&[("SERVICE_443_NAME", "web")], &[443]),
        (&[("VIRTUAL_HOST", "a.example")], &[80]),
        (&[("VIRTUAL_HOST", "a.example"), ("VIRTUAL_PORT", "443")], &[443]),
        (&[("traefik.enable", "true")], &[80]),
        (&[("traefik.enable", "true"), ("traefik.http.services.s.loadbalancer.server.port", "443")], &[443]),
    ];
    for (labels, expected) in cases {
        let findings = services(&with(&[80, 443], labels), None, &explicit);
        let ports: BTreeSet<u16> = findings.registrations.iter().map(|found| found.port).collect();
        assert_eq!(ports, expected.iter().copied().collect(), "{labels:?} {findings:#?}");
        assert!(findings.refusals.iter().all(Refusal::is_by_choice), "{labels:?} {:?}", findings.refusals);
    }
}

#[test]
fn the_address_is_the_labels_else_the_flags_else_the_mappings_else_the_default_routes() {
    let published = |bindings: &[(&str, &str)], label: Option<&str>, flag: Option<&str>, route: Option<&str>| {
        let labels: Vec<_> = label.map(|ip| ("SERVICE_IP", ip)).into_iter().collect();
        let mut container = with(&[80], &labels);
        let bindings = bindings.iter().map(|(ip, port)| bollard::models::PortBinding {
            host_ip: Some((*ip).to_owned()),
            host_port: Some((*port).to_owned()),
        });
        container.network_settings.as_mut().unwrap().ports =
            Some(HashMap::from([("80/tcp".to_owned(), Some(bindings.collect()))]));
        let ip = |text: Option<&str>| text.map(|text| text.parse::<IpAddr>().unwrap());
        // The default route has an address of each family that is named.
        let mut default_address = DefaultAddress::default();
        for ip in route.into_iter().flat_map(|text| text.split(' ')).filter_map(|text| ip(Some(text))) {
            match ip {
                IpAddr::V4(ip) => default_address.v4 = Some(ip),
                IpAddr::V6(ip) => default_address.v6 = Some(ip),
            }
        }
        let scope = Scope { ip: ip(flag), default_address, ..scope() };
        let (keys, refusals) = shown(&services(&container, None, &scope));
        keys.into_iter().chain(refusals).collect::<Vec<_>>().join(" ")
    };
    let (label, flag, route) = (Some("10.9.9.9"), Some("10.5.5.5"), Some("10.0.0.1"));
    let all = [("0.0.0.0", "1"), ("::", "2")].as_slice();
    let one = [("10.7.7.7", "3")].as_slice();
    let six = [("::", "6")].as_slice();
    let loopback = [("127.0.0.1", "4")].as_slice();
    let cases = [
        (all, label, flag, route, "/10.9.9.9:1"),
        (all, None, flag, route, "/10.5.5.5:1"),
        (all, None, None, route, "/10.0.0.1:1"),
        (all, None, None, Some("2001:db8::1"), "/[2001:db8::1]:2"),
        (all, None, None, None, "say it with `--ip ADDRESS`"),
        (six, None, None, route, "it is not published for IPv4, and 10.0.0.1 is such an address"),
        (six, None, None, Some("10.0.0.1 2001:db8::1"), "/[2001:db8::1]:6"),
        (all, None, None, Some("10.0.0.1 2001:db8::1"), "/10.0.0.1:1"),
        (six, None, flag, Some("2001:db8::1"), "publish it with `-p 10.5.5.5::80`"),
        (six, None, Some("2001:db8::2"), None, "/[2001:db8::2]:6"),
        (one, label, flag, route, "/10.9.9.9:3"),
        (one, None, flag, route, "/10.5.5.5:3"),
        (one, None, None, None, "/10.7.7.7:3"),
        (loopback, label, None, route, "/10.9.9.9:4"),
        (loopback, None, Some("127.0.0.1"), route, "/127.0.0.1:4"),
        (loopback, None, flag, route, "published on 127.0.0.1 alone"),
        (loopback, None, None, route, "`-p HOSTADDRESS::80`"),
        (&[("127.0.0.1", "4"), ("2001:db8::7", "5")], None, None, route, "/[2001:db8::7]:5"),
        (&[("127.0.0.1", "4"), ("0.0.0.0", "5")], None, None, route, "/10.0.0.1:5"),
        // The loopback's mapping leads from no other address.
        (&[("127.0.0.1", "4"), ("::", "5")], None, flag, route, "it is not published for IPv4, and 10.5.5.5 is such"),
        (&[("127.0.0.1", "4"), ("::", "5")], None, None, Some("10.0.0.1 2001:db8::1"), "/[2001:db8::1]:5"),
        (&[("127.0.0.1", "4"), ("192.0.2.9", "5")], None, flag, route, "/10.5.5.5:5"),
        (&[("", "7")], None, None, Some("2001:db8::1"), "/[2001:db8::1]:7"),
        (all, Some("host-1"), None, route, "SERVICE_IP=\"host-1\": it must be an IP address"),
        (all, Some("0.0.0.0"), None, route, "SERVICE_IP=\"0.0.0.0\": 0.0.0.0 is not the address of one host"),
    ];
    for (bindings, label, flag, route, expected) in cases {
        let found = published(bindings, label, flag, route);
        assert!(found.contains(expected), "{bindings:?} {label:?} {flag:?} {route:?}: {found}");
    }
}

#[test]
fn a_host_name_outside_the_domains_leaves_the_port_out() {
    let bounded = Scope { domains: "a.example,*.b.example".parse().unwrap(), ..scope() };
    let found = |labels: &[(&str, &str)]| shown(&services(&with(&[80], labels), None, &bounded));
    assert_eq!(found(&[("SERVICE_HOST", "a.example,X.b.example")]).0.len(), 1);
    assert_eq!(found(&[("SERVICE_MODE", "tcp"), ("SERVICE_LISTEN", "5432")]).0.len(), 1);
    // What nobody asked for is nothing to warn of.
    let plain = services(&with(&[80], &[]), None, &bounded);
    assert!(plain.registrations.is_empty() && plain.refusals[0].is_by_choice(), "{plain:?}");
    let named = services(&with(&[80], &[("SERVICE_NAME", "shop")]), None, &bounded);
    assert!(named.registrations.is_empty() && !named.refusals[0].is_by_choice(), "{named:?}");
    let refused = [
        (
            vec![("SERVICE_NAME", "shop")],
            "with --domains it must, so that it is not routed on every host: say it with SERVICE_HOST",
        ),
        (vec![("SERVICE_NAME", "shop"), ("SERVICE_MODE", "tcp")], "say it with SERVICE_LISTEN"),
        (vec![("SERVICE_NAME", "shop"), ("SERVICE_LISTEN", "80")], "say it with SERVICE_HOST"),
        (vec![("SERVICE_HOST", "a.example,evil.example")], "--domains does not allow the host name \"evil.example\""),
        (vec![("VIRTUAL_HOST", "evil.example")], "VIRTUAL_HOST=\"evil.example\": --domains does not allow"),
        (vec![("traefik.http.routers.r.rule", "Host(`evil.example`)")], "--domains does not allow"),
        (vec![("SERVICE_PATH", "/")], "so that it is not routed on every host"),
    ];
    let (_, refusals) = found(&[("SERVICE_HOST", "a b"), ("SERVICE_PATH", "/x")]);
    assert_eq!(refusals.len(), 1, "{refusals:?}");
    for (labels, expected) in refused {
        let (keys, refusals) = found(&labels);
        assert!(keys.is_empty() && refusals[0].contains(expected), "{labels:?}: {keys:?} {refusals:?}");
    }
}

#[test]
fn the_check_is_what_labels_say_else_the_healthcheck_else_tcp() {
    let kind = |labels: &[(&str, &str)], health: bool| {
        let mut container = with(&[80], labels);
        if health {
            container.config.as_mut().unwrap().healthcheck = recorded("health").config.unwrap().healthcheck;
        }
        let findings = services(&container, None, &Scope { allow_exec: true, ..scope() });
        let Some(found) = findings.registrations.first() else { panic!("{labels:?}: {:?}", findings.refusals) };
        match found.check.kind.clone() {
            CheckKind::Http(http) => format!(
                "{} {}{} {:?} {:?}",
                http.method,
                if http.tls { "https" } else { "http" },
                http.path,
                http.headers,
                http.expected
            ),
            CheckKind::Tcp { targets, .. } => format!("tcp {targets:?}"),
            CheckKind::Exec { command } => format!("exec {command:?}"),
            CheckKind::Docker => "docker".to_owned(),
            CheckKind::None => "none".to_owned(),
        }
    };
    assert_eq!(kind(&[], false), "tcp [172.17.0.5:80, 10.1.0.101:40080]");
    let cases: [(Pairs<'_>, &str); 14] = [
        (&[], "docker"),
        (&[("SERVICE_CHECK_TCP", "true")], "tcp ["),
        (&[("SERVICE_CHECK_TCP", "false")], "docker"),
        (&[("SERVICE_CHECK_DOCKER", "1")], "docker"),
        (&[("SERVICE_CHECK_NONE", "true")], "none"),
        (&[("SERVICE_CHECK_HTTP", "/a")], "GET http/a {} Below500"),
        (&[("SERVICE_CHECK_HTTPS", "/a"), ("SERVICE_CHECK_HTTPS_METHOD", "HEAD")], "HEAD https/a"),
        (&[("SERVICE_CHECK_HTTP", "/a"), ("SERVICE_PROTO", "https")], "GET https/a"),
        (&[("SERVICE_CHECK_HTTP", "/a"), ("SERVICE_CHECK_STATUS", "200-299, 404")], "Ranges([200..=299, 404..=404])"),
        (
            &[("SERVICE_CHECK_HTTP", "/a"), ("SERVICE_CHECK_HEADERS", "X-A: b:c | Host: h")],
            r#"{"x-a": "b:c", "host": "h"}"#,
        ),
        (&[("SERVICE_CHECK_HTTP", "/a"), ("SERVICE_HOST", "b.example,a.example")], r#"{"host": "a.example"}"#),
        (
            &[("SERVICE_CHECK_SCRIPT", "nc $SERVICE_IP $SERVICE_PORT")],
            r#"exec ["/bin/sh", "-c", "nc 10.1.0.101 40080"]"#,
        ),
        (&[("SERVICE_80_CHECK_NONE", "yes"), ("SERVICE_CHECK_HTTP", "/a")], "none"),
        (&[("SERVICE_80_CHECK_HTTP", ""), ("SERVICE_CHECK_HTTP", "/a")], "docker"),
    ];
    for (labels, expected) in cases {
        let found = kind(labels, true);
        assert!(found.contains(expected), "{labels:?}: {found}");
    }
    let details = [
        ("SERVICE_CHECK_INTERVAL", "1m30s"),
        ("SERVICE_CHECK_TIMEOUT", "200ms"),
        ("SERVICE_CHECK_RISE", "2"),
        ("SERVICE_CHECK_FALL", "4"),
    ];
    let findings = labelled(&[80], &details);
    let check = &findings.registrations[0].check;
    assert_eq!((check.interval.as_secs(), check.timeout.as_millis(), check.rise, check.fall), (90, 200, 2, 4));
}

#[test]
fn a_healthcheck_counts_by_itself() {
    let checked = |labels: Pairs<'_>| {
        let mut container = with(&[80], labels);
        container.config.as_mut().unwrap().healthcheck = recorded("health").config.unwrap().healthcheck;
        let flags = CheckFlags { rise: 4, fall: 5, ..scope().check };
        services(&container, None, &Scope { check: flags, ..scope() })
    };
    let counts = |findings: &Findings| (findings.registrations[0].check.rise, findings.registrations[0].check.fall);
    let findings = checked(&[]);
    assert_eq!((counts(&findings), shown(&findings).1), ((1, 1), vec![]));
    let findings = checked(&[("SERVICE_CHECK_RISE", "2")]);
    assert_eq!(counts(&findings), (1, 1));
    assert!(findings.refusals[0].is_by_choice() && shown(&findings).1[0].contains("--health-retries"), "{findings:?}");
    let findings = checked(&[("SERVICE_CHECK_TCP", "true"), ("SERVICE_CHECK_RISE", "2")]);
    assert_eq!((counts(&findings), shown(&findings).1), ((2, 5), vec![]));
}

#[test]
fn haproxys_own_check_follows_the_registrars_where_both_ask_the_same_way() {
    let cases: [(Pairs<'_>, Pairs<'_>); 6] = [
        (&[("SERVICE_CHECK_HTTP", "/a")], &[("check_http", "/a")]),
        (&[("SERVICE_CHECK_HTTPS", "/a")], &[("check_http", "/a"), ("proto", "https")]),
        (&[("SERVICE_CHECK_HTTPS", "/a"), ("SERVICE_PROTO", "http")], &[("proto", "http")]),
        (&[("SERVICE_CHECK_HTTP", "/a"), ("SERVICE_PROTO", "https")], &[("check_http", "/a"), ("proto", "https")]),
        (&[("SERVICE_CHECK_TCP", "true"), ("SERVICE_CHECK_INTERVAL", "1s")], &[]),
        (&[("SERVICE_80_CHECK_TCP", "true"), ("SERVICE_CHECK_HTTP", "/a")], &[]),
    ];
    for (labels, expected) in cases {
        let findings = labelled(&[80], labels);
        assert_eq!(attributes(&findings), expected, "{labels:?}");
    }
}

#[test]
fn a_label_that_cannot_be_read_leaves_its_port_out_and_no_other() {
    let long = "x".repeat(2000);
    let cases = [
        ("SERVICE_80_NAME", "a b", "' ' is not allowed in a name"),
        ("SERVICE_80_NAME", "_x", "begins with '_'"),
        ("SERVICE_80_NAME", "a,", "must not be empty"),
        ("SERVICE_80_WEIGHT", "heavy", "SERVICE_80_WEIGHT=\"heavy\": it must be a number from 0 to 256"),
        ("SERVICE_80_WEIGHT", "257", "0 to 256"),
        ("SERVICE_80_WEIGHT", "-1", "0 to 256"),
        ("SERVICE_80_IP", "10.0.0.999", "it must be an IP address"),
        ("SERVICE_80_HOST", "a b", "is not a host name"),
        ("SERVICE_80_HOST", "x\n  http-request deny", "is not a host name"),
        ("SERVICE_80_MODE", "udp", "http and tcp are"),
        ("SERVICE_80_LISTEN", "0", "a port, 1 to 65535"),
        ("SERVICE_80_BALANCE", "best", "roundrobin, leastconn"),
        ("SERVICE_80_PROTO", "h3", "http, https and h2 are"),
        ("SERVICE_80_STICKY", "maybe", "true or false"),
        ("SERVICE_80_MAXCONN", "lots", "a number of connections"),
        ("SERVICE_80_SLOWSTART", "10", "a length of time"),
        ("SERVICE_80_CHECK_HTTP", "health", "it begins with /"),
        ("SERVICE_80_CHECK_TCP", "maybe", "true or false"),
        ("SERVICE_80_CHECK_DOCKER", "true", "the container has no HEALTHCHECK"),
        ("SERVICE_80_CHECK_SCRIPT", "true", "start the agent with --allow-exec"),
        ("SERVICE_80_CHECK_GRPC", "x", "no check is called so; SERVICE_CHECK_HTTP"),
        ("SERVICE_80_CHECK", "http", "no check is called so"),
        ("SERVICE_80_CHECK_INTERVAL", "5", "a time with its unit"),
        ("SERVICE_80_CHECK_INTERVAL", "0s", "a time with its unit"),
        ("SERVICE_80_CHECK_INTERVAL", "25h", "at most 24h"),
        ("SERVICE_80_CHECK_TIMEOUT", "61s", "at most 1m"),
        ("SERVICE_80_CHECK_RISE", "0", "a number from 1 to 1000"),
        ("SERVICE_80_X", &long, "more than a record takes: attribute x has"),
        ("SERVICE_80_X", "a\u{7}b", "SERVICE_80_X=\"a\\u{7}b\": what is said of it is more than a record takes"),
    ];
    for (label, value, expected) in cases {
        let findings = labelled(&[80, 443], &[(label, value)]);
        let (keys, refusals) = shown(&findings);
        assert_eq!(keys, ["/service/web-443/10.1.0.101:40443"], "{label}={value}: {refusals:?}");
        assert!(refusals.iter().any(|refusal| refusal.contains(expected)), "{label}={value}: {refusals:?}");
        assert!(
            refusals.iter().all(|refusal| refusal.starts_with("port 80: ") && !refusal.contains('\n')),
            "{refusals:?}"
        );
        assert!(!findings.refusals[0].is_by_choice(), "{label}={value}");
    }
    let of_http = [
        ("SERVICE_CHECK_STATUS", "ok", "HTTP statuses such as 200"),
        ("SERVICE_CHECK_STATUS", "300-200", "HTTP statuses"),
        ("SERVICE_CHECK_STATUS", "99", "HTTP statuses"),
        ("SERVICE_CHECK_METHOD", "get", "an HTTP method"),
        ("SERVICE_CHECK_HEADERS", "X-A", "headers such as"),
        ("SERVICE_CHECK_HEADERS", "X A: b", "headers such as"),
        ("SERVICE_CHECK_TCP", "true", "there are several: SERVICE_CHECK_HTTP, SERVICE_CHECK_TCP"),
    ];
    for (label, value, expected) in of_http {
        let (keys, refusals) = shown(&labelled(&[80], &[("SERVICE_CHECK_HTTP", "/"), (label, value)]));
        assert!(
            keys.is_empty() && refusals.iter().any(|refusal| refusal.contains(expected)),
            "{label}={value}: {refusals:?}"
        );
    }
}

#[test]
fn labels_for_ports_that_are_not_there_are_named_and_the_others_go_on() {
    let cases = [
        ("SERVICE_8080_NAME", "api", "SERVICE_8080_NAME=\"api\": it has no such port; it has 80"),
        ("SERVICE_99999_NAME", "api", "no port number"),
        ("SERVICE_0_NAME", "api", "no port number"),
        ("VIRTUAL_PORT", "8080", "VIRTUAL_PORT=\"8080\": it has no such port"),
        ("SERVICE_CHECK_INITIAL_STATUS", "passing", "this means nothing here"),
    ];
    for (label, value, expected) in cases {
        let (keys, refusals) = shown(&labelled(&[80], &[(label, value)]));
        assert_eq!(keys, ["/service/web/10.1.0.101:40080"], "{label}");
        assert!(refusals.iter().any(|refusal| refusal.contains(expected)), "{label}: {refusals:?}");
    }
}

#[test]
fn nginx_proxys_variables_are_read() {
    let host = ("VIRTUAL_HOST", "b.example,a.example");
    let findings = labelled(&[8000], &[host, ("VIRTUAL_PATH", "/x"), ("VIRTUAL_PROTO", "https")]);
    assert_eq!(attributes(&findings), [("host", "a.example,b.example"), ("path", "/x"), ("proto", "https")]);
    assert_eq!(findings.registrations[0].key.service().as_str(), "a.example-x");
    let two = services(&variables(with(&[80, 443], &[]), &["VIRTUAL_HOST=a.example"]), None, &scope());
    assert_eq!(shown(&two).0, ["/service/a.example/10.1.0.101:40080", "/service/web-443/10.1.0.101:40443"]);
    let one = labelled(&[8000, 9000], &[host, ("SERVICE_9000_IGNORE", "1")]);
    assert_eq!(one.registrations.len(), 1, "{one:?}");
    let (keys, refusals) = shown(&labelled(&[8000, 9000], &[host]));
    assert!(keys.is_empty() && refusals[0].contains("say which one with VIRTUAL_PORT"), "{keys:?} {refusals:?}");
    let (keys, refusals) = shown(&labelled(&[80], &[("VIRTUAL_HOST", "~^www")]));
    assert!(keys.is_empty() && refusals[0].contains("VIRTUAL_HOST=\"~^www\""), "{refusals:?}");
    let findings = labelled(&[80], &[host, ("SERVICE_HOST", "c.example")]);
    assert_eq!(attributes(&findings), [("host", "c.example")]);
}

#[test]
fn traefiks_labels_are_read_and_what_has_no_counterpart_is_refused() {
    let rule = ("traefik.http.routers.r.rule", "Host(`a.example`) && PathPrefix(`/x`)");
    let port = ("traefik.http.services.s.loadbalancer.server.port", "8000");
    let findings = labelled(
        &[8000, 9000],
        &[
            ("traefik.enable", "true"),
            rule,
            port,
            ("traefik.http.services.s.loadbalancer.healthcheck.path", "/health"),
            ("traefik.http.services.s.loadbalancer.healthcheck.interval", "10"),
            ("traefik.http.services.s.loadbalancer.healthcheck.timeout", "1s"),
            ("traefik.http.services.s.loadbalancer.sticky.cookie.name", "c"),
            ("SERVICE_9000_IGNORE", "yes"),
        ],
    );
    let expected = [("check_http", "/health"), ("host", "a.example"), ("path", "/x"), ("sticky", "true")];
    assert_eq!(attributes(&findings), expected);
    let found = &findings.registrations[0];
    assert_eq!((found.key.service().as_str(), found.port, found.check.interval.as_secs()), ("s", 8000, 10));

    let two = labelled(
        &[80, 81],
        &[
            ("Traefik.HTTP.Routers.a.Rule", "Host(`a.example`)"),
            ("traefik.http.routers.a.service", "a@docker"),
            ("traefik.http.routers.b.rule", "Host(`b.example`)"),
            ("traefik.http.routers.b.service", "b"),
            ("traefik.http.services.a.loadbalancer.server.port", "80"),
            ("traefik.http.services.b.loadbalancer.server.port", "81"),
        ],
    );
    assert_eq!(shown(&two).0, ["/service/a/10.1.0.101:40080", "/service/b/10.1.0.101:40081"], "{two:?}");
    let only_rule = labelled(&[80, 81], &[rule, ("SERVICE_81_IGNORE", "1")]);
    assert_eq!(shown(&only_rule).0, ["/service/r/10.1.0.101:40080"]);

    let refused: [(Pairs<'_>, &str); 7] = [
        (
            &[("traefik.http.routers.r.rule", "HostRegexp(`.*`)")],
            "traefik.http.routers.r.rule=\"HostRegexp(`.*`)\": HostRegexp has no counterpart",
        ),
        (&[rule, ("traefik.http.routers.r.middlewares", "auth")], "middlewares have no counterpart"),
        (&[rule, ("traefik.http.routers.q.rule", "Host(`b.example`)")], "one path for all"),
        (&[("traefik.tcp.routers.r.rule", "HostSNI(`*`)")], "SERVICE_MODE=tcp"),
        (&[rule, ("traefik.http.services.s.loadbalancer.server.port", "x")], "no port number"),
        (
            &[
                rule,
                ("traefik.http.routers.r.service", "other"),
                ("traefik.http.services.s.loadbalancer.server.port", "80"),
            ],
            "to which service",
        ),
        (
            &[
                rule,
                ("traefik.http.services.s.loadbalancer.healthcheck.path", "/"),
                ("traefik.http.services.s.loadbalancer.healthcheck.port", "81"),
            ],
            "asked on its own port",
        ),
    ];
    for (labels, expected) in refused {
        let (keys, refusals) = shown(&labelled(&[80], labels));
        assert!(
            keys.is_empty() && refusals.iter().any(|refusal| refusal.contains(expected)),
            "{labels:?}: {keys:?} {refusals:?}"
        );
    }
    // Whoever says the same in our words has said that it is meant.
    let meant = labelled(&[80], &[("traefik.http.routers.r.rule", "HostRegexp(`.*`)"), ("SERVICE_HOST", "a.example")]);
    assert_eq!(meant.registrations.len(), 1, "{meant:?}");
}

#[test]
fn a_container_without_a_start_or_a_name_is_registered_without_them() {
    let mut container = with(&[80], &[]);
    container.name = None;
    container.state.as_mut().unwrap().started_at = Some("0001-01-01T00:00:00Z".to_owned());
    let findings = services(&container, None, &scope());
    let record = &findings.registrations[0].record;
    assert_eq!((&record.name, record.registered), (&None, None));
    assert_eq!(services(&ContainerInspectResponse::default(), None, &scope()).registrations, []);
}

fn label() -> impl Strategy<Value = (String, String)> {
    let name = prop_oneof![
        "SERVICE_(80_|443_|81_|)(NAME|TAGS|WEIGHT|IP|HOST|PATH|IGNORE|MODE|LISTEN|PROTO|X|CHECK_HTTP|CHECK_TCP|CHECK_NONE|CHECK_FALL)",
        "VIRTUAL_(HOST|PORT|PATH|PROTO)",
        "traefik\\.(enable|http\\.routers\\.[ab]\\.(rule|service)|http\\.services\\.[ab]\\.loadbalancer\\.(server\\.port|healthcheck\\.path))",
        ".{0,12}",
    ];
    let value = prop_oneof![
        Just("true".to_owned()),
        Just("80".to_owned()),
        Just("a.example".to_owned()),
        Just("/x".to_owned()),
        Just("Host(`a.example`)".to_owned()),
        Just("web,shop".to_owned()),
        ".{0,12}",
    ];
    (name, value)
}

proptest! {
    #[test]
    fn whatever_labels_say_nothing_panics_and_what_is_registered_can_be_read_back(
        labels in proptest::collection::vec(label(), 0..12), ports in proptest::collection::btree_set(prop_oneof![Just(80u16), Just(443), Just(81)], 0..3),
        explicit: bool, internal: bool, seed in any::<u64>(),
    ) {
        let scope = Scope { explicit, internal, ..scope() };
        let ports: Vec<u16> = ports.into_iter().collect();
        let pairs: Vec<_> = labels.iter().map(|(label, value)| (label.as_str(), value.as_str())).collect();
        let findings = services(&with(&ports, &pairs), None, &scope);
        for found in &findings.registrations {
            prop_assert_eq!(Record::parse(&found.record.to_value()).unwrap(), found.record.clone());
            prop_assert_eq!(InstanceKey::parse(&scope.prefix, &found.key.path()).unwrap(), found.key.clone());
        }
        prop_assert!(findings.registrations.is_sorted_by(|a, b| a.key < b.key));
        for refusal in &findings.refusals {
            prop_assert!(!refusal.to_string().chars().any(char::is_control), "{refusal}");
        }
        // A map's order is another one each time; the variables' is that of the user.
        let mut variables_in_order: Vec<String> = labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let mut seen = BTreeSet::new();
        variables_in_order.retain(|variable| seen.insert(variable.split('=').next().unwrap().to_owned()));
        let first = services(&variables(with(&ports, &[]), &variables_in_order.iter().map(String::as_str).collect::<Vec<_>>()), None, &scope);
        let half = variables_in_order.len() / 2;
        variables_in_order.rotate_left(if half == 0 { 0 } else { usize::try_from(seed % 7).unwrap() % half });
        variables_in_order.reverse();
        let again = services(&variables(with(&ports, &[]), &variables_in_order.iter().map(String::as_str).collect::<Vec<_>>()), None, &scope);
        prop_assert_eq!(first, again);
    }
}

#[test]
fn a_container_with_ten_thousand_labels_is_refused_in_words_and_labels_of_others_do_not_count() {
    let named = |name: &dyn Fn(u16) -> String| (1..=10_000).map(name).collect::<Vec<_>>();
    let of = |names: &[String]| {
        let labels: Vec<_> = names.iter().map(|name| (name.as_str(), "web")).collect();
        services(&with(&[80], &labels), None, &scope())
    };
    let kinds: [&dyn Fn(u16) -> String; 3] =
        [&|number| format!("SERVICE_{number}_NAME"), &|number| format!("service_x{number}"), &|number| {
            format!("traefik.http.services.a{number}.loadbalancer.server.port")
        }];
    for kind in kinds {
        let (keys, refusals) = shown(&of(&named(kind)));
        assert_eq!(keys, Vec::<String>::new());
        assert_eq!(refusals.len(), 1);
        assert!(refusals[0].contains("10000 of its labels") && refusals[0].contains("at most 1000"), "{refusals:?}");
    }
    let (keys, refusals) = shown(&of(&named(&|number| format!("org.{number}"))));
    assert_eq!((keys.len(), refusals), (1, vec![]));
}

#[test]
fn a_container_with_longer_labels_than_an_event_of_docker_takes_is_refused_whosever_they_are() {
    let of = |size: usize| {
        let value = "v".repeat(size - "SERVICE_NAME".len() - "web".len() - "org.example".len());
        services(&with(&[80], &[("SERVICE_NAME", "web"), ("org.example", &value)]), None, &scope())
    };
    let (keys, refusals) = shown(&of(128 << 10));
    assert_eq!((keys.len(), refusals), (1, vec![]));
    let (keys, refusals) = shown(&of((128 << 10) + 1));
    assert_eq!(keys, Vec::<String>::new());
    assert!(refusals[0].contains("131073 bytes") && refusals[0].contains("at most 131072"), "{refusals:?}");
}
