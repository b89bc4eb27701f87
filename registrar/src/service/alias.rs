//! What labels of other schemes mean in ours: nginx-proxy's `VIRTUAL_HOST` and Traefik's routers and services. Pure.
//!
//! What they say that cannot be said in ours is refused, and with it the port that it is said of, unless a `SERVICE_`
//! label says the same thing in our words.

use std::collections::{BTreeMap, BTreeSet};

use registry::settings::parse_switch;

use super::labels::{Labels, Rank, Setting};
use super::refusal::{Reason, Refusal};
use super::rule;

/// What other schemes say, by port, in our words.
#[derive(Debug, Default)]
pub(super) struct Aliases {
    settings: BTreeMap<(u16, &'static str), Result<Setting, Refusal>>,
    /// The ports that they ask to be registered.
    asked: BTreeSet<u16>,
    /// `traefik.enable=false`.
    pub(super) disabled: Option<Setting>,
    /// What is wrong with no port in particular.
    pub(super) refusals: Vec<Refusal>,
}

impl Aliases {
    /// Reads the labels of a container with these ports.
    pub(super) fn of(labels: &Labels, ports: &BTreeSet<u16>) -> Self {
        let mut aliases = Self::default();
        aliases.read_virtual_host(labels, ports);
        aliases.read_traefik(labels, ports);
        aliases
    }

    /// The ports that they name, each with the label that does.
    pub(super) fn named_ports(labels: &Labels) -> BTreeMap<u16, &Setting> {
        let of_traefik = labels.all.iter().filter(|(label, _)| is_server_port(&label.to_ascii_lowercase()));
        let settings = labels.raw("VIRTUAL_PORT").into_iter().chain(of_traefik.map(|(_, setting)| setting));
        settings.filter_map(|setting| Some((port_of(setting).ok()?, setting))).collect()
    }

    /// Whether one of them asks that the container be registered.
    pub(super) fn ask(labels: &Labels) -> bool {
        let enable = Traefik::of(labels).enable;
        labels.raw("VIRTUAL_HOST").is_some() || enable.is_some_and(|setting| parse_switch(&setting.value) == Ok(true))
    }

    pub(super) fn get(&self, port: u16, name: &str) -> Result<Option<&Setting>, Refusal> {
        let found = self.settings.iter().find(|((of, called), _)| *of == port && *called == name);
        match found {
            None => Ok(None),
            Some((_, Ok(setting))) => Ok(Some(setting).filter(|setting| !setting.value.is_empty())),
            Some((_, Err(refusal))) => Err(refusal.clone()),
        }
    }

    pub(super) fn names(&self, port: u16) -> impl Iterator<Item = &'static str> {
        self.settings.keys().filter(move |(of, _)| *of == port).map(|(_, name)| *name)
    }

    pub(super) fn ask_for(&self, port: u16) -> bool {
        self.asked.contains(&port)
    }

    /// What was said first stays.
    fn set(&mut self, port: u16, name: &'static str, setting: Result<Setting, Refusal>) {
        self.settings.entry((port, name)).or_insert(setting);
    }

    fn read_virtual_host(&mut self, labels: &Labels, ports: &BTreeSet<u16>) {
        let Some(host) = labels.raw("VIRTUAL_HOST") else { return };
        let port = match labels.raw("VIRTUAL_PORT") {
            Some(setting) => port_of(setting),
            // nginx-proxy takes the only port, else 80.
            None => sole(ports)
                .or(Some(80).filter(|port| ports.contains(port)))
                .ok_or_else(|| Refusal::of_setting(host, Reason::WhichPort("VIRTUAL_PORT"))),
        };
        match port {
            Ok(port) => {
                self.asked.insert(port);
                for (label, name) in [("VIRTUAL_HOST", "host"), ("VIRTUAL_PATH", "path"), ("VIRTUAL_PROTO", "proto")] {
                    if let Some(setting) = labels.raw(label) {
                        self.set(port, name, Ok(as_alias(setting, setting.value.clone())));
                    }
                }
            }
            Err(refusal) => self.refuse(ports, &refusal),
        }
    }

    fn read_traefik(&mut self, labels: &Labels, ports: &BTreeSet<u16>) {
        let traefik = Traefik::of(labels);
        if let Some(setting) = traefik.enable {
            match parse_switch(&setting.value) {
                Ok(true) => self.asked.extend(traefik.ports(ports)),
                Ok(false) => {
                    self.disabled = Some(setting.clone());
                    return;
                }
                Err(error) => self.refusals.push(Refusal::of_setting(setting, error.into())),
            }
        }
        if let Some(setting) = traefik.other_protocol {
            self.refuse(ports, &Refusal::of_setting(setting, Reason::TraefikProtocol));
        }
        for (name, routers, service) in traefik.backends() {
            let port = match service.and_then(|service| service.get("server.port")) {
                Some(setting) => port_of(setting),
                // Traefik takes the lowest port.
                None => match ports.first() {
                    Some(port) => Ok(*port),
                    None => return,
                },
            };
            let port = match port {
                Ok(port) => port,
                Err(refusal) => {
                    self.refuse(ports, &refusal);
                    continue;
                }
            };
            self.read_backend(port, name, &routers, service);
        }
        if let Some(setting) = traefik.homeless_router() {
            self.refuse(ports, &Refusal::of_setting(setting, Reason::RouterService));
        }
    }

    /// One of Traefik's services with the routers that lead to it.
    fn read_backend(&mut self, port: u16, name: Option<&str>, routers: &[&Router<'_>], service: Option<&Keys<'_>>) {
        let mut routers_settings = routers.iter().flat_map(|router| router.keys.0.values());
        let first = routers_settings.next().or_else(|| service?.0.values().next());
        if let (Some(name), Some(first)) = (name, first) {
            self.set(port, "name", Ok(as_alias(first, name.to_owned())));
        }
        match read_rules(routers) {
            Ok(None) => {}
            Ok(Some((rule, route))) => {
                self.set(port, "host", Ok(as_alias(rule, route.hosts.join(","))));
                self.set(port, "path", Ok(as_alias(rule, route.path.unwrap_or_default())));
            }
            Err(refusal) => self.set(port, "host", Err(refusal)),
        }
        let Some(service) = service else { return };
        if let Some(setting) = service.get("server.scheme") {
            let proto = if setting.value == "h2c" { "h2" } else { &setting.value };
            self.set(port, "proto", Ok(as_alias(setting, proto.to_owned())));
        }
        let named_cookie = service.0.iter().find(|(key, _)| key.starts_with("sticky.cookie."));
        if let Some(setting) = service.get("sticky.cookie").or_else(|| service.get("sticky")) {
            self.set(port, "sticky", Ok(as_alias(setting, setting.value.clone())));
        } else if let Some((_, setting)) = named_cookie {
            self.set(port, "sticky", Ok(as_alias(setting, "true".to_owned())));
        }
        if let Some(setting) = service.get("healthcheck.port") {
            self.set(port, "check_http", Err(Refusal::of_setting(setting, Reason::CheckPort)));
        }
        let tls = service.get("healthcheck.scheme").is_some_and(|setting| setting.value == "https");
        if let Some(setting) = service.get("healthcheck.path") {
            let name = if tls { "check_https" } else { "check_http" };
            self.set(port, name, Ok(as_alias(setting, setting.value.clone())));
        }
        for (key, name) in [
            ("healthcheck.interval", "check_interval"),
            ("healthcheck.timeout", "check_timeout"),
            ("healthcheck.method", "check_method"),
            ("healthcheck.status", "check_status"),
        ] {
            if let Some(setting) = service.get(key) {
                // A time without a unit is one of seconds there.
                let is_number = setting.value.bytes().all(|b| b.is_ascii_digit());
                let unit = if is_number && matches!(name, "check_interval" | "check_timeout") { "s" } else { "" };
                self.set(port, name, Ok(as_alias(setting, format!("{}{unit}", setting.value))));
            }
        }
        if let Some(setting) = service.get("healthcheck.hostname") {
            self.set(port, "check_headers", Ok(as_alias(setting, format!("Host: {}", setting.value))));
        }
    }

    /// Something that could be meant for any of the ports.
    fn refuse(&mut self, ports: &BTreeSet<u16>, refusal: &Refusal) {
        for &port in ports {
            self.asked.insert(port);
            self.set(port, "host", Err(refusal.clone()));
        }
        if ports.is_empty() {
            self.refusals.push(refusal.clone());
        }
    }
}

/// The keys below one router or service.
#[derive(Debug, Default)]
struct Keys<'a>(BTreeMap<String, &'a Setting>);

impl<'a> Keys<'a> {
    fn get(&self, key: &str) -> Option<&'a Setting> {
        self.0.get(key).copied().filter(|setting| !setting.value.is_empty())
    }
}

#[derive(Debug)]
struct Router<'a> {
    name: String,
    keys: Keys<'a>,
}

impl Router<'_> {
    /// The service that it names, without its provider (`web@docker`).
    fn service(&self) -> Option<String> {
        let named = self.keys.get("service")?.value.split('@').next()?;
        Some(named.to_ascii_lowercase())
    }
}

/// Traefik's labels (Traefik 3, "Docker" routing configuration); upper and lower case are the same there.
#[derive(Debug, Default)]
struct Traefik<'a> {
    enable: Option<&'a Setting>,
    routers: Vec<Router<'a>>,
    services: BTreeMap<String, Keys<'a>>,
    other_protocol: Option<&'a Setting>,
}

impl<'a> Traefik<'a> {
    fn of(labels: &'a Labels) -> Self {
        let mut traefik = Self::default();
        let mut routers: BTreeMap<String, Keys<'a>> = BTreeMap::new();
        for (label, setting) in &labels.all {
            let label = label.to_ascii_lowercase();
            let Some(rest) = label.strip_prefix("traefik.") else { continue };
            if rest == "enable" {
                traefik.enable = Some(setting).filter(|setting| !setting.value.is_empty());
            } else if let Some(rest) = rest.strip_prefix("http.routers.") {
                let Some((name, key)) = rest.split_once('.') else { continue };
                routers.entry(name.to_owned()).or_default().0.insert(key.to_owned(), setting);
            } else if let Some(rest) = rest.strip_prefix("http.services.") {
                let Some((name, key)) = rest.split_once(".loadbalancer.") else { continue };
                traefik.services.entry(name.to_owned()).or_default().0.insert(key.to_owned(), setting);
            } else if rest.starts_with("tcp.") || rest.starts_with("udp.") {
                traefik.other_protocol = Some(setting);
            }
        }
        traefik.routers = routers.into_iter().map(|(name, keys)| Router { name, keys }).collect();
        traefik
    }

    /// Each service with its name and the routers that lead to it. Without one, all routers lead to the container.
    fn backends(&self) -> Vec<(Option<&str>, Vec<&Router<'a>>, Option<&Keys<'a>>)> {
        if self.services.is_empty() {
            let name = match self.routers.as_slice() {
                [router] => Some(router.name.as_str()),
                _ => None,
            };
            let routers: Vec<_> = self.routers.iter().collect();
            return if routers.is_empty() { Vec::new() } else { vec![(name, routers, None)] };
        }
        let is_only = self.services.len() == 1;
        self.services
            .iter()
            .map(|(name, keys)| {
                let leads_here = |router: &&Router<'a>| router.service().map_or(is_only, |named| named == *name);
                (Some(name.as_str()), self.routers.iter().filter(leads_here).collect(), Some(keys))
            })
            .collect()
    }

    /// The ports that its services have.
    fn ports(&self, ports: &BTreeSet<u16>) -> BTreeSet<u16> {
        let named = self.services.values().filter_map(|service| port_of(service.get("server.port")?).ok());
        let named: BTreeSet<u16> = named.collect();
        if named.is_empty() { ports.first().copied().into_iter().collect() } else { named }
    }

    /// A router that leads to no service of this container, where it could be any of several.
    fn homeless_router(&self) -> Option<&'a Setting> {
        let is_homeless = |router: &&Router<'a>| match router.service() {
            Some(named) => !self.services.is_empty() && !self.services.contains_key(&named),
            None => self.services.len() > 1,
        };
        self.routers.iter().find(is_homeless)?.keys.0.values().next().copied()
    }
}

/// What the rules of the routers mean together, and the label of the first; `None` where there is no rule.
fn read_rules<'a>(routers: &[&Router<'a>]) -> Result<Option<(&'a Setting, rule::Route)>, Refusal> {
    for router in routers {
        if let Some(setting) = router.keys.get("middlewares") {
            return Err(Refusal::of_setting(setting, Reason::Middlewares));
        }
    }
    let mut all: Option<(&'a Setting, rule::Route)> = None;
    for setting in routers.iter().filter_map(|router| router.keys.get("rule")) {
        let refused = |error: rule::RuleError| Refusal::of_setting(setting, error.into());
        let route = rule::read(&setting.value).map_err(refused)?;
        match &mut all {
            None => all = Some((setting, route)),
            Some((_, first)) => first.join(route).map_err(refused)?,
        }
    }
    Ok(all)
}

fn is_server_port(label: &str) -> bool {
    label.starts_with("traefik.http.services.") && label.ends_with(".loadbalancer.server.port")
}

fn port_of(setting: &Setting) -> Result<u16, Refusal> {
    let port = setting.value.parse().ok().filter(|port| *port != 0);
    port.ok_or_else(|| Refusal::of_setting(setting, Reason::PortNumber))
}

fn sole(ports: &BTreeSet<u16>) -> Option<u16> {
    ports.first().copied().filter(|_| ports.len() == 1)
}

fn as_alias(setting: &Setting, value: String) -> Setting {
    Setting { label: setting.label.clone(), value, rank: Rank::Alias }
}
