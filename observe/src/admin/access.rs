//! Who may ask at the admin address. Pure: from a request's head to yes or no.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fmt, io};

use axum::http::header::{AUTHORIZATION, HOST};
use axum::http::uri::{Authority, Uri};
use axum::http::{HeaderMap, HeaderValue};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use subtle::ConstantTimeEq;

use super::address::{Address, BindError};

/// A word that lets in who knows it. It is never shown.
#[derive(Clone)]
pub struct Token(Arc<str>);

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// Nothing in it.
    #[error("the admin token is empty: {0}")]
    Empty(String),
    /// It could not be sent in a header as it is.
    #[error("the admin token may only have visible ASCII characters and no blanks: {0}")]
    Form(String),
    /// Its file cannot be read.
    #[error("the admin token cannot be read from {file}: {error}")]
    Unreadable {
        /// Which.
        file: PathBuf,
        /// Why.
        error: io::Error,
    },
}

impl Token {
    /// Takes a token; `from` says in messages where it comes from.
    ///
    /// # Errors
    /// Where it is empty or has characters that no header takes.
    pub fn new(text: &str, from: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(TokenError::Empty(from.to_owned()));
        }
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(TokenError::Form(from.to_owned()));
        }
        Ok(Self(text.into()))
    }

    /// Reads the token that stands alone in a file.
    ///
    /// # Errors
    /// Where there is none.
    pub fn from_file(file: &Path) -> Result<Self, TokenError> {
        let text =
            std::fs::read_to_string(file).map_err(|error| TokenError::Unreadable { file: file.to_owned(), error })?;
        Self::new(&text, &file.display().to_string())
    }

    /// The token of a file, else of an environment variable, else none: as both daemons are given it.
    ///
    /// # Errors
    /// Where one is given that is none.
    pub fn from_file_or_variable(file: Option<&Path>, variable: &str) -> Result<Option<Self>, TokenError> {
        if let Some(file) = file {
            return Self::from_file(file).map(Some);
        }
        match std::env::var_os(variable).filter(|value| !value.is_empty()) {
            None => Ok(None),
            Some(value) => match value.to_str() {
                Some(text) => Self::new(text, variable).map(Some),
                None => Err(TokenError::Form(variable.to_owned())),
            },
        }
    }

    /// The header `Authorization` of a client who knows it.
    pub fn authorization(&self) -> HeaderValue {
        let text = format!("Bearer {}", self.0);
        let mut value = HeaderValue::try_from(text).expect("a token has only visible ASCII characters");
        value.set_sensitive(true);
        value
    }

    /// Whether it is that. Takes as long whatever is the first character that differs.
    fn is(&self, other: &[u8]) -> bool {
        self.0.as_bytes().ct_eq(other).into()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// Who may ask.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// Who knows this; without it, who comes to the address.
    pub token: Option<Token>,
    /// No token is needed although other hosts could come to it.
    pub without_token: bool,
}

impl Access {
    /// Refuses an address that would be open to all, before anything is bound.
    ///
    /// # Errors
    /// [`BindError::Open`].
    pub fn check(&self, address: &Address) -> Result<(), BindError> {
        if address.is_local() || self.token.is_some() || self.without_token {
            Ok(())
        } else {
            Err(BindError::Open(address.clone()))
        }
    }
}

/// What is said to a request before it is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It may be answered.
    Welcome,
    /// It carries no token.
    NoToken,
    /// It carries another one.
    WrongToken,
    /// It was meant for another name: a page that a browser shows makes it ask here (DNS rebinding).
    OtherHost,
    /// A page of another site makes the browser ask here: it cannot read the answer, but may hold connections and streams.
    OtherSite,
}

/// Judges a request by its head. `is_tcp`: a browser could have been led here.
pub(super) fn judge(access: &Access, is_tcp: bool, uri: &Uri, headers: &HeaderMap) -> Verdict {
    if is_of_other_site(headers) {
        return Verdict::OtherSite;
    }
    let Some(token) = &access.token else {
        let is_foreign = is_tcp && names_of(uri, headers).any(|name| !name.is_some_and(is_own_name));
        return if is_foreign { Verdict::OtherHost } else { Verdict::Welcome };
    };
    if uri.path().starts_with("/health/") {
        return Verdict::Welcome;
    }
    let mut given = headers.get_all(AUTHORIZATION).iter();
    match (given.next(), given.next()) {
        (None, _) => Verdict::NoToken,
        (Some(value), None) if password(value.as_bytes()).is_some_and(|given| token.is(&given)) => Verdict::Welcome,
        _ => Verdict::WrongToken,
    }
}

/// Whether a browser says that another site than this server's makes it ask, and not that somebody follows a link or opens a bookmark: that is a
/// document by itself, whereas a frame is none. Nobody but a browser sends these headers, and no script can change them
/// (<https://www.w3.org/TR/fetch-metadata/>).
fn is_of_other_site(headers: &HeaderMap) -> bool {
    let is_foreign = |site: &HeaderValue| site != "same-origin" && site != "none";
    let is = |name: &str, value: &str| {
        headers.get_all(name).iter().all(|given| given == value) && headers.contains_key(name)
    };
    headers.get_all("sec-fetch-site").iter().any(is_foreign)
        && !(is("sec-fetch-mode", "navigate") && is("sec-fetch-dest", "document"))
}

/// The names by which the request calls this server. None where it calls it nothing, as no browser does; `Some(None)` for
/// what is no name.
fn names_of<'a>(uri: &'a Uri, headers: &'a HeaderMap) -> impl Iterator<Item = Option<Authority>> {
    let of_header = headers.get_all(HOST).iter().map(|value| value.to_str().ok()?.parse().ok());
    of_header.chain(uri.authority().cloned().map(Some))
}

/// Whether nobody else can make this name lead here.
#[allow(clippy::needless_pass_by_value, reason = "as the iterator gives it")]
fn is_own_name(authority: Authority) -> bool {
    let host = authority.host();
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    host.eq_ignore_ascii_case("localhost") || host.parse::<std::net::IpAddr>().is_ok()
}

/// What the header gives as the token: of Bearer all, of Basic the password, under whatever user.
fn password(value: &[u8]) -> Option<Vec<u8>> {
    let at = value.iter().position(|&byte| byte == b' ')?;
    let (scheme, rest) = (&value[..at], value[at..].trim_ascii());
    if scheme.eq_ignore_ascii_case(b"bearer") {
        return Some(rest.to_vec());
    }
    if !scheme.eq_ignore_ascii_case(b"basic") {
        return None;
    }
    let pair = STANDARD.decode(rest).ok()?;
    let colon = pair.iter().position(|&byte| byte == b':')?;
    Some(pair[colon + 1..].to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(token: Option<&str>) -> Access {
        Access { token: token.map(|text| Token::new(text, "a test").unwrap()), without_token: false }
    }

    fn said(access: &Access, path: &str, headers: &[(&'static str, &str)]) -> Verdict {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().unwrap());
        }
        judge(access, true, &path.parse().unwrap(), &map)
    }

    #[test]
    fn a_token_is_given_as_bearer_or_as_the_password_of_anybody() {
        let guarded = access(Some("s3cret"));
        let basic = |pair: &str| format!("Basic {}", STANDARD.encode(pair));
        for (given, verdict) in [
            ("Bearer s3cret", Verdict::Welcome),
            ("bearer  s3cret", Verdict::Welcome),
            (&*basic("anybody:s3cret"), Verdict::Welcome),
            (&*basic(":s3cret"), Verdict::Welcome),
            (&*basic("s3cret"), Verdict::WrongToken),
            (&*basic("a:b:s3cret"), Verdict::WrongToken),
            ("Bearer s3cre", Verdict::WrongToken),
            ("Bearer s3cret2", Verdict::WrongToken),
            ("Bearer", Verdict::WrongToken),
            ("Bearer ", Verdict::WrongToken),
            ("Basic ???", Verdict::WrongToken),
            ("Digest s3cret", Verdict::WrongToken),
            ("s3cret", Verdict::WrongToken),
        ] {
            assert_eq!(said(&guarded, "/metrics", &[("authorization", given)]), verdict, "{given}");
        }
        assert_eq!(said(&guarded, "/metrics", &[]), Verdict::NoToken);
        let twice = [("authorization", "Bearer s3cret"), ("authorization", "Bearer s3cret")];
        assert_eq!(said(&guarded, "/metrics", &twice), Verdict::WrongToken);
        assert_eq!(said(&guarded, "/health/live", &[]), Verdict::Welcome);
        assert_eq!(said(&guarded, "/healthy", &[]), Verdict::NoToken);
        // A browser that was led here knows no token.
        assert_eq!(
            said(&guarded, "/", &[("host", "evil.example"), ("authorization", "Bearer s3cret")]),
            Verdict::Welcome
        );
    }

    #[test]
    fn without_a_token_a_name_that_others_own_is_refused() {
        let open = access(None);
        for (host, verdict) in [
            ("127.0.0.1:9401", Verdict::Welcome),
            ("127.0.0.1", Verdict::Welcome),
            ("[::1]:9401", Verdict::Welcome),
            ("localhost", Verdict::Welcome),
            ("LOCALHOST:1", Verdict::Welcome),
            ("10.0.0.7:9401", Verdict::Welcome),
            ("evil.example", Verdict::OtherHost),
            ("evil.example:9401", Verdict::OtherHost),
            ("localhost.evil.example", Verdict::OtherHost),
            ("127.0.0.1.evil.example", Verdict::OtherHost),
            ("127.0.0.1@evil.example", Verdict::OtherHost),
            ("", Verdict::OtherHost),
        ] {
            assert_eq!(said(&open, "/", &[("host", host)]), verdict, "{host:?}");
        }
        assert_eq!(said(&open, "/", &[("host", "localhost"), ("host", "evil.example")]), Verdict::OtherHost);
        assert_eq!(said(&open, "http://evil.example/", &[("host", "localhost")]), Verdict::OtherHost);
        // HTTP/1.0, as HAProxy's checks speak it.
        assert_eq!(said(&open, "/health/live", &[]), Verdict::Welcome);
        let mut foreign = HeaderMap::new();
        foreign.insert(HOST, "evil.example".parse().unwrap());
        assert_eq!(judge(&open, false, &"/".parse().unwrap(), &foreign), Verdict::Welcome);
    }

    #[test]
    fn what_another_site_makes_a_browser_ask_is_refused_but_for_a_link_to_here() {
        let asked = |site: &'static str, mode: &'static str, dest: &'static str| {
            [("sec-fetch-site", site), ("sec-fetch-mode", mode), ("sec-fetch-dest", dest)]
        };
        let (yes, no) = (Verdict::Welcome, Verdict::OtherSite);
        for (site, mode, dest, verdict) in [
            ("none", "navigate", "document", yes),
            ("same-origin", "cors", "empty", yes),
            ("same-origin", "no-cors", "script", yes),
            ("cross-site", "navigate", "document", yes),
            ("same-site", "navigate", "document", yes),
            ("cross-site", "navigate", "iframe", no),
            ("cross-site", "navigate", "frame", no),
            ("cross-site", "navigate", "object", no),
            ("cross-site", "navigate", "empty", no),
            ("cross-site", "cors", "empty", no),
            ("cross-site", "no-cors", "document", no),
            ("same-site", "cors", "empty", no),
            ("same-site", "no-cors", "image", no),
            ("what-may-come", "cors", "empty", no),
            ("", "cors", "empty", no),
        ] {
            for path in ["/", "/api/v1/events", "/metrics", "/health/live"] {
                let headers = asked(site, mode, dest);
                assert_eq!(said(&access(None), path, &headers), verdict, "{headers:?} {path}");
                // Whether the browser knows the token or not.
                let known = [&headers[..], &[("authorization", "Bearer t")]].concat();
                assert_eq!(said(&access(Some("t")), path, &known), verdict, "{known:?} {path}");
            }
        }
        let [site, mode, dest] = asked("cross-site", "navigate", "document");
        for headers in
            [&[site][..], &[site, mode], &[site, dest], &[("sec-fetch-site", "none"), ("sec-fetch-site", "cross-site")]]
        {
            assert_eq!(said(&access(None), "/", headers), no, "{headers:?}");
        }
        // No browser: nothing is said of it.
        assert_eq!(said(&access(None), "/metrics", &[]), yes);
        assert_eq!(said(&access(None), "/metrics", &[mode, dest]), yes);
    }

    #[test]
    fn a_token_is_never_shown_and_must_fit_a_header() {
        let token = Token::new(" s3cret\n", "a test").unwrap();
        assert!(token.is(b"s3cret"));
        assert!(!format!("{token:?} {:?}", access(Some("s3cret"))).contains("s3cret"));
        for bad in ["", " \n", "two words", "\u{e9}", "a\x1bb"] {
            let error = Token::new(bad, "a test").unwrap_err().to_string();
            assert!(error.contains("a test"), "{error}");
        }
    }

    #[test]
    fn what_other_hosts_reach_needs_a_token_or_the_word_that_it_needs_none() {
        let (all, loopback) = ("0.0.0.0:1".parse().unwrap(), "127.0.0.1:1".parse().unwrap());
        assert!(access(None).check(&loopback).is_ok());
        assert!(access(Some("t")).check(&all).is_ok());
        assert!(Access { token: None, without_token: true }.check(&all).is_ok());
        let error = access(None).check(&all).unwrap_err();
        assert!(error.is_usage());
        for way in ["--admin-token-file FILE", "--admin unix:PATH", "--admin-without-token"] {
            assert!(error.to_string().contains(way), "{error}");
        }
    }
}
