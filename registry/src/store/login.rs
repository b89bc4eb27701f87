//! How a user shows etcd who it is: by name and password with each request (v2), or by a token that they are changed for
//! once (v3).
//!
//! A token ends: etcd forgets a simple one that was not used for five minutes, and all of them when users or roles are
//! changed or it is started anew. Whoever is told so by etcd says it here ([`Login::rejected`]) and asks again.

use std::fmt;

use percent_encoding::percent_decode_str;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use reqwest::{Client, RequestBuilder};
use serde::Deserialize;
use tokio::sync::{Mutex, watch};
use tracing::warn;
use url::Url;

use super::api::Api;
use super::connector::Current;
use super::endpoints::{Content, Reply, read_all, shown};
use super::security::{Credentials, Secret};
use super::trouble::root_cause;

/// What a request shows. Neither prints what is secret.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Authorization {
    /// HTTP's Basic authentication.
    Basic(Credentials),
    /// etcd's token.
    Token(HeaderValue),
}

impl fmt::Debug for Authorization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Basic(_) => "Basic",
            Self::Token(_) => "Token",
        })
    }
}

impl Authorization {
    /// Adds it to a request.
    pub(super) fn add(&self, builder: RequestBuilder) -> RequestBuilder {
        match self {
            Self::Basic(login) => builder.basic_auth(&login.user, Some(&login.password.0)),
            Self::Token(token) => builder.header(AUTHORIZATION, token),
        }
    }
}

/// Keeps the token.
#[derive(Debug, Default)]
pub(super) struct Login {
    /// What came of the last exchange.
    known: watch::Sender<Option<Known>>,
    /// Held by the one who asks for a token: the others wait, since etcd's check of a password is slow on purpose.
    asking: Mutex<()>,
}

/// What a user and password were changed for.
#[derive(Debug, Clone)]
struct Known {
    by: Credentials,
    /// `None` where etcd wants no user at all.
    token: Option<HeaderValue>,
}

impl Login {
    /// What a request to this endpoint is to show; `None` for nothing. May ask the endpoint for a token; the limit on its
    /// time is the caller's.
    ///
    /// # Errors
    /// In words, where the endpoint gives no token.
    pub(super) async fn authorization(
        &self,
        current: &Current,
        endpoint: &Url,
        api: Api,
    ) -> Result<Option<Authorization>, String> {
        let Some(login) = credentials(current, endpoint) else { return Ok(None) };
        if api == Api::V2 {
            return Ok(Some(Authorization::Basic(login)));
        }
        if let Some(known) = self.known_by(&login) {
            return Ok(known.token.map(Authorization::Token));
        }
        let _asking = self.asking.lock().await;
        if let Some(known) = self.known_by(&login) {
            return Ok(known.token.map(Authorization::Token));
        }
        let token = authenticate(&current.client, endpoint, &login).await?;
        if token.is_none() {
            warn!("etcd's authentication is switched off: its user and password are not asked for");
        }
        self.known.send_replace(Some(Known { by: login, token: token.clone() }));
        Ok(token.map(Authorization::Token))
    }

    fn known_by(&self, login: &Credentials) -> Option<Known> {
        self.known.borrow().clone().filter(|known| known.by == *login)
    }

    /// etcd did not take what the request showed: the next one asks for another token. Says whether that may help.
    pub(super) fn rejected(&self, shown: Option<&Authorization>) -> bool {
        let shown = match shown {
            Some(Authorization::Basic(_)) => return false,
            Some(Authorization::Token(token)) => Some(token),
            None => None,
        };
        // Another request may have had the same answer, and a new token may be there already.
        let forgotten = self.known.send_if_modified(|known| {
            let is_that = known.as_ref().is_some_and(|known| known.token.as_ref() == shown);
            if is_that {
                *known = None;
            }
            is_that
        });
        forgotten || shown.is_some() || self.known.borrow().is_some()
    }
}

/// The user and password of an endpoint's URL.
fn of_url(endpoint: &Url) -> Option<Credentials> {
    let plain = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    let user = plain(endpoint.username());
    (!user.is_empty()).then(|| Credentials { user, password: Secret(plain(endpoint.password().unwrap_or_default())) })
}

/// The user and password to be used there: the flags', else those of the endpoint's own URL.
fn credentials(current: &Current, endpoint: &Url) -> Option<Credentials> {
    current.login.clone().or_else(|| of_url(endpoint))
}

/// Who etcd is to know us as there.
pub(super) fn user(current: &Current, endpoint: &Url) -> Option<String> {
    credentials(current, endpoint).map(|login| login.user)
}

/// Whether etcd's v3 refuses a request because of its token, or for want of one: another token may help then.
/// (etcd 3.4, `etcdserver/api/v3rpc/rpctypes/error.go`: ErrInvalidAuthToken, ErrAuthOldRevision, ErrUserEmpty.)
pub(super) fn is_rejected(api: Option<Api>, reply: &Reply) -> bool {
    const REASONS: [&str; 3] = ["invalid auth token", "revision of auth store is old", "user name is empty"];
    let Content::Whole(body) = &reply.content else { return false };
    api == Some(Api::V3)
        && !reply.status.is_success()
        && serde_json::from_slice(body)
            .is_ok_and(|Refused { error }| REASONS.iter().any(|reason| error.contains(reason)))
}

#[derive(Deserialize)]
struct Authenticated {
    token: String,
}

/// etcd's no; it says it twice, as `error` and as `message`.
#[derive(Deserialize)]
struct Refused {
    #[serde(rename = "message")]
    error: String,
}

/// Changes user and password for a token. `None` where etcd's authentication is switched off.
async fn authenticate(client: &Client, endpoint: &Url, login: &Credentials) -> Result<Option<HeaderValue>, String> {
    let mut url = without_login(endpoint);
    url.set_path("/v3/auth/authenticate");
    let body = serde_json::json!({"name": login.user, "password": login.password.0}).to_string();
    let request = client.post(url).header(CONTENT_TYPE, "application/json").body(body);
    let failed = |error: &reqwest::Error| format!("cannot log in: {}", root_cause(error));
    let reply = request.send().await.map_err(|error| failed(&error))?;
    let status = reply.status();
    let body = read_all(reply).await.map_err(|failure| format!("cannot log in: {}", failure.what))?;
    if status.is_success() {
        let Authenticated { token } = serde_json::from_slice(&body)
            .map_err(|_| "cannot log in: its answer is not etcd's; is that etcd's client URL?".to_owned())?;
        let mut token = HeaderValue::from_str(&token).map_err(|_| "cannot log in: its token is no text".to_owned())?;
        token.set_sensitive(true);
        return Ok(Some(token));
    }
    let said =
        serde_json::from_slice(&body).map_or_else(|_| String::from_utf8_lossy(&body).into(), |Refused { error }| error);
    if said.contains("authentication is not enabled") {
        return Ok(None);
    }
    let user = &login.user;
    Err(match said.contains("authentication failed") {
        true => format!(
            "refuses user {user}: the password is wrong, or there is no such user; mend --etcd-user or the password"
        ),
        false => format!("gives user {user} no token: {status}: {}", shown(&said)),
    })
}

/// The endpoint without user and password: they are no part of what is asked for.
pub(super) fn without_login(endpoint: &Url) -> Url {
    let mut url = endpoint.clone();
    // An http URL with a host has room for them.
    let _possible = url.set_username("").and_then(|()| url.set_password(None));
    url
}
