//! Which endpoints there are: those that were given, and those that DNS has for a name (`srv://example.org`).
//!
//! Edge: asks DNS. In which order its answers are tried, and which of them are none, is decided in pure functions.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::ResolveHosts;
use hickory_resolver::proto::rr::RData;
use tokio::sync::{Mutex, watch};
use tokio::time::{Instant, timeout};
use tracing::{info, warn};
use url::{Host, Url};

use super::endpoints::{shown, shown_endpoint};

/// The scheme of a name that DNS is to be asked for.
pub(super) const SRV: &str = "srv";
/// The least time between two questions for a name. A cluster does not move within seconds, and etcd may be away for hours.
const LOOK_UP_EVERY: Duration = Duration::from_secs(5);
/// The limit on one question.
const LOOK_UP_LIMIT: Duration = Duration::from_secs(5);
/// The most endpoints that are taken of one answer. Clusters have three or five members.
const ANSWER_LIMIT: usize = 32;

/// The endpoints of one cluster.
pub(super) struct Members {
    given: Vec<Url>,
    /// Names lead to `https` endpoints alone.
    only_https: bool,
    now: watch::Sender<Known>,
    /// Held by the one who asks DNS.
    asking: Mutex<()>,
}

/// A name for which DNS has no answer.
#[derive(Debug, Clone)]
pub(super) struct Trouble {
    pub(super) name: String,
    pub(super) what: String,
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.what)
    }
}

/// What is known of them.
#[derive(Clone)]
pub(super) struct Known {
    /// In the order in which they are tried.
    pub(super) urls: Arc<[Url]>,
    /// What is wrong with names.
    pub(super) trouble: Arc<[Trouble]>,
    asked: Option<Instant>,
    /// None of them answered.
    is_stale: bool,
}

impl fmt::Debug for Members {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.given.iter().map(shown_endpoint)).finish()
    }
}

impl Members {
    /// These. Asks nobody anything.
    pub(super) fn new(given: Vec<Url>, only_https: bool) -> Self {
        let has_names = given.iter().any(is_name);
        let urls = if has_names { Arc::default() } else { given.clone().into() };
        let known = Known { urls, trouble: Arc::default(), asked: None, is_stale: has_names };
        Self { given, only_https, now: watch::Sender::new(known), asking: Mutex::default() }
    }

    /// Those to be asked now. Asks DNS where that is due: at first, and when none of them answered.
    pub(super) async fn now(&self) -> Known {
        if !self.is_due() {
            return self.now.borrow().clone();
        }
        let _asking = self.asking.lock().await;
        if self.is_due() {
            self.look_up().await;
        }
        self.now.borrow().clone()
    }

    /// None of them gave an answer: they may be others by now.
    pub(super) fn none_answered(&self) {
        if self.given.iter().any(is_name) {
            self.now.send_modify(|known| known.is_stale = true);
        }
    }

    fn is_due(&self) -> bool {
        let known = self.now.borrow();
        known.is_stale && known.asked.is_none_or(|asked| asked.elapsed() >= LOOK_UP_EVERY)
    }

    async fn look_up(&self) {
        let mut urls: Vec<Url> = Vec::new();
        let mut trouble = Vec::new();
        for given in &self.given {
            let found = match given.host_str() {
                Some(name) if is_name(given) => look_up(name, self.only_https).await,
                _ => Ok(vec![given.clone()]),
            };
            match found {
                Ok(found) => urls.extend(found),
                Err(what) => trouble.push(Trouble { name: shown_endpoint(given), what }),
            }
        }
        let before = self.now.borrow().clone();
        // Where a name has no answer, those that it led to before stay.
        if !trouble.is_empty() {
            urls.extend(before.urls.iter().cloned());
        }
        let urls = without_repeats(urls);
        if *urls != *before.urls {
            let endpoints: Vec<_> = urls.iter().map(shown_endpoint).collect();
            info!(endpoints = endpoints.join(","), "etcd's endpoints, as DNS has them");
        }
        self.now.send_replace(Known {
            is_stale: !trouble.is_empty(),
            urls: urls.into(),
            trouble: trouble.into(),
            asked: Some(Instant::now()),
        });
    }
}

/// Whether DNS is to be asked for it.
pub(super) fn is_name(endpoint: &Url) -> bool {
    endpoint.scheme() == SRV
}

/// A host name as DNS may have it; `None` for what is none.
pub(super) fn host_name(text: &str) -> Option<&str> {
    let name = text.strip_suffix('.').unwrap_or(text);
    let is_label = |label: &str| {
        (1..=63).contains(&label.len()) && label.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))
    };
    (name.len() <= 253 && name.split('.').all(is_label)).then_some(name)
}

fn without_repeats(urls: Vec<Url>) -> Vec<Url> {
    let mut kept: Vec<Url> = Vec::new();
    for url in urls {
        if !kept.contains(&url) {
            kept.push(url);
        }
    }
    kept
}

/// One endpoint of an answer.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Record {
    priority: u16,
    weight: u16,
    target: String,
    port: u16,
}

/// Asks DNS for the endpoints of etcd's clients in a domain.
async fn look_up(domain: &str, only_https: bool) -> Result<Vec<Url>, String> {
    let services: &[_] = match only_https {
        true => &[("https", "_etcd-client-ssl._tcp")],
        false => &[("https", "_etcd-client-ssl._tcp"), ("http", "_etcd-client._tcp")],
    };
    let mut urls = Vec::new();
    let mut missing = Vec::new();
    let mut trouble = None;
    for (scheme, service) in services {
        let name = format!("{service}.{domain}");
        match ask(&name).await {
            Ok(records) if records.is_empty() => missing.push(name),
            Ok(records) => urls.extend(endpoints(scheme, records)),
            Err(what) => trouble = Some(format!("{what} (asked for {name})")),
        }
    }
    if !urls.is_empty() {
        return Ok(urls);
    }
    Err(trouble.unwrap_or_else(|| {
        let hint = if only_https { " (with --etcd-ca or --etcd-cert only https endpoints count)" } else { "" };
        format!("DNS has no usable SRV record {}{hint}", missing.join(" or "))
    }))
}

/// The endpoints of one answer, in the order in which they are to be tried.
fn endpoints(scheme: &str, mut records: Vec<Record>) -> Vec<Url> {
    records.sort();
    records.truncate(ANSWER_LIMIT);
    let choose = |below: u32| rand::random_range(0..below);
    in_order(records, choose).into_iter().filter_map(|record| endpoint(scheme, &record)).collect()
}

/// What a record says, as an endpoint; `None`, with a warning, where it says none.
fn endpoint(scheme: &str, record: &Record) -> Option<Url> {
    // An address is no name of a host (RFC 2782), and "." says that there is no such service.
    let url = host_name(&record.target)
        .and_then(|host| Url::parse(&format!("{scheme}://{host}:{}", record.port)).ok())
        .filter(|url| record.port != 0 && matches!(url.host(), Some(Host::Domain(_))));
    if url.is_none() {
        warn!(
            target = shown(&record.target),
            port = record.port,
            "an SRV record of DNS names no etcd endpoint; it is passed over"
        );
    }
    url
}

/// The order of RFC 2782: the lowest priority first, and by chance within one, the more often the higher the weight.
/// `choose` gives a number below its argument.
fn in_order(mut records: Vec<Record>, mut choose: impl FnMut(u32) -> u32) -> Vec<Record> {
    // Among equal priorities those of weight 0 come first, as the RFC wants it.
    records.sort();
    let mut ordered = Vec::with_capacity(records.len());
    while let Some(priority) = records.first().map(|record| record.priority) {
        let group = records.iter().take_while(|record| record.priority == priority);
        let weights: Vec<u32> = group.map(|record| u32::from(record.weight)).collect();
        let chosen = choose(weights.iter().sum::<u32>() + 1);
        let mut sum = 0;
        let at = weights.iter().position(|weight| {
            sum += weight;
            sum >= chosen
        });
        ordered.push(records.remove(at.unwrap_or(0)));
    }
    ordered
}

/// Asks the system's DNS servers, as `/etc/resolv.conf` names them now. No records is an answer too.
async fn ask(name: &str) -> Result<Vec<Record>, String> {
    let mut builder = TokioResolver::builder_tokio()
        .map_err(|error| format!("/etc/resolv.conf names no DNS server to ask: {}", shown(&error.to_string())))?;
    // A name that DNS has: no list of domains is tried, nor the file of hosts.
    builder.options_mut().use_hosts_file = ResolveHosts::Never;
    let resolver = builder.build().map_err(|error| shown(&error.to_string()))?;
    let answer = match timeout(LOOK_UP_LIMIT, resolver.srv_lookup(format!("{name}."))).await {
        Err(_) => return Err(format!("DNS does not answer within {LOOK_UP_LIMIT:?}")),
        Ok(Err(error)) if error.is_no_records_found() => return Ok(Vec::new()),
        Ok(Err(error)) => return Err(format!("DNS does not answer: {}", shown(&error.to_string()))),
        Ok(Ok(answer)) => answer,
    };
    let record = |data: &RData| match data {
        RData::SRV(srv) => {
            Some(Record { priority: srv.priority, weight: srv.weight, target: srv.target.to_ascii(), port: srv.port })
        }
        _ => None,
    };
    Ok(answer.answers().iter().filter_map(|answer| record(&answer.data)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record(priority: u16, weight: u16, target: &str) -> Record {
        Record { priority, weight, target: target.into(), port: 2379 }
    }

    #[test]
    fn the_lowest_priority_comes_first_and_weights_decide_within_one() {
        let records = || vec![record(2, 0, "c"), record(1, 10, "a"), record(1, 90, "b"), record(1, 0, "z")];
        let targets = |choose: fn(u32) -> u32| {
            in_order(records(), choose).into_iter().map(|record| record.target).collect::<String>()
        };
        assert_eq!(targets(|_| 0), "zabc");
        assert_eq!(targets(|below| below - 1), "bazc");
        assert_eq!(targets(|below| below.min(11) - 1), "abzc");
    }

    #[test]
    fn what_is_no_host_with_a_port_is_passed_over() {
        let of = |target: &str, port| {
            let record = Record { port, ..record(0, 0, target) };
            endpoint("https", &record).map(|url| shown_endpoint(&url))
        };
        assert_eq!(of("etcd-1.example.org.", 2379).as_deref(), Some("https://etcd-1.example.org:2379"));
        assert_eq!(of("etcd-1", 1).as_deref(), Some("https://etcd-1:1"));
        for bad in
            [".", "", "a b.example", "127.0.0.1.", "0x7f.1", "2130706433", "a@b", "a/b", "a\\046b", "a..b", "-\n"]
        {
            assert_eq!(of(bad, 2379), None, "{bad:?}");
        }
        assert_eq!(of("etcd-1.example.org.", 0), None);
    }

    proptest! {
        #[test]
        fn an_order_has_every_record_once_and_priorities_rise(
            weights in prop::collection::vec((0u16..4, 0u16..5), 0..20), chosen in prop::collection::vec(any::<u32>(), 20)
        ) {
            let records: Vec<_> = weights.iter().map(|(priority, weight)| record(*priority, *weight, "a")).collect();
            let mut chosen = chosen.into_iter();
            let mut ordered = in_order(records.clone(), |below| chosen.next().unwrap() % below);
            prop_assert!(ordered.is_sorted_by_key(|record| record.priority));
            let mut expected = records;
            expected.sort();
            ordered.sort();
            prop_assert_eq!(ordered, expected);
        }
    }
}
