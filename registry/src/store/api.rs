//! Which of etcd's two APIs is spoken. Pure but for the one question to each endpoint.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde::{Deserialize, Serialize};
use tracing::{debug, error};

use super::endpoints::{Body, Content, Endpoints, Reply, Request};
use super::{StoreError, Trouble, v2};

/// How long the others are waited for, once one endpoint has answered.
const GRACE: Duration = Duration::from_millis(500);

/// One of etcd's APIs. Each holds its own keys: what is written by one is not seen by the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Api {
    /// `/v2/keys`, of etcd 3.4 and 3.5 with `--enable-v2`.
    V2,
    /// `/v3/kv`, of etcd 3.4 and later.
    V3,
}

impl Api {
    /// As flags and records write it: `v2`, `v3`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V2 => "v2",
            Self::V3 => "v3",
        }
    }
}

impl fmt::Display for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Which API is to be spoken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ApiChoice {
    /// v2 where the cluster serves it, else v3.
    #[default]
    Auto,
    /// This one.
    Only(Api),
}

impl FromStr for ApiChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "v2" => Ok(Self::Only(Api::V2)),
            "v3" => Ok(Self::Only(Api::V3)),
            _ => Err("write auto, v2 or v3".to_owned()),
        }
    }
}

impl fmt::Display for ApiChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Only(api) => api.fmt(f),
        }
    }
}

/// What `/version` says.
#[derive(Deserialize)]
struct Version {
    #[serde(rename = "etcdserver")]
    _server: String,
}

/// Asks each endpoint for v2: v3 is spoken only where every endpoint that answers lacks it.
pub(super) async fn decide(etcd: &Endpoints) -> Result<Api, StoreError> {
    let version = Request {
        method: Method::GET,
        path: vec!["version".to_owned()],
        query: Vec::new(),
        body: Body::Nothing,
        stream: false,
    };
    let answers = etcd.ask_all(&[version, v2::question()], |replies| read(&replies), GRACE).await;
    let with = |wanted: Api| -> Vec<&str> {
        answers.iter().filter(|(_, api)| *api == Ok(wanted)).map(|(endpoint, _)| endpoint.as_str()).collect()
    };
    let (with_v2, without) = (with(Api::V2), with(Api::V3));
    match (with_v2.is_empty(), without.is_empty()) {
        (true, true) => {
            let failures = answers.iter().filter_map(|(endpoint, api)| Some((endpoint, api.as_ref().err()?)));
            let (causes, failures): (Vec<Trouble>, Vec<String>) =
                failures.map(|(endpoint, (cause, what))| (*cause, format!("{endpoint}: {what}"))).unzip();
            let cause = causes.first().copied().unwrap_or(Trouble::Client);
            Err(StoreError::unanswered(failures.join("; "), cause))
        }
        (true, false) => {
            debug!(api = "v3", "etcd does not serve its v2 API; v3 is spoken");
            Ok(Api::V3)
        }
        (false, true) => Ok(Api::V2),
        (false, false) => {
            error!(
                with_v2 = with_v2.join(","),
                without_v2 = without.join(","),
                "some endpoints of etcd serve its v2 API and others do not: v2 is spoken, and with those others it will not \
                 work; start all with --enable-v2, or give --etcd-api v3 to every registrar and discoverer"
            );
            Ok(Api::V2)
        }
    }
}

/// Reads the replies to the two questions.
fn read(replies: &[Reply]) -> Result<Api, String> {
    let [version, v2] = replies else { return Err("the replies do not belong to the questions".to_owned()) };
    let is_etcd = match &version.content {
        Content::Whole(body) => version.status == StatusCode::OK && serde_json::from_slice::<Version>(body).is_ok(),
        Content::Stream(_) => false,
    };
    if !is_etcd {
        return Err(format!(
            "answered {} to /version without etcd's JSON; --etcd wants etcd's client URL, as a rule with port 2379",
            version.status
        ));
    }
    Ok(if v2::is_served(v2)? { Api::V2 } else { Api::V3 })
}
