//! Words for why etcd cannot be reached: what is wrong, and the way out. Pure.
//!
//! The words for one trouble are always the same, with no count of seconds in them: whoever tries again tells only what is
//! new.

use std::error::Error;
use std::io;

use jiff::Timestamp;
use reqwest::StatusCode;
use rustls::pki_types::UnixTime;
use rustls::{AlertDescription, CertificateError};
use url::Url;

use super::endpoints::shown;
use super::security::Security;

/// How a connection ends on which TLS was begun and nothing came, in the words of the TLS stack (tokio-rustls).
const HANDSHAKE_END: &str = "tls handshake eof";

/// By what a request to etcd failed, as metrics tell it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Trouble {
    /// There was no connection.
    Connect,
    /// TLS: certificates, names, versions.
    Tls,
    /// Nothing came in time.
    Timeout,
    /// The connection ended before the answer did.
    BrokeOff,
    /// The answer was none that etcd gives, or says that etcd is not well.
    Answer,
    /// etcd will not do it: rights, space, a key where a directory should be.
    Refused,
    /// The key, or its lease, is not what it was: gone, or somebody else's.
    Conflict,
    /// No client could be made, or it knows no endpoint.
    Client,
}

impl Trouble {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Connect,
        Self::Tls,
        Self::Timeout,
        Self::BrokeOff,
        Self::Answer,
        Self::Refused,
        Self::Conflict,
        Self::Client,
    ];

    /// Its name in a metric's label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::Timeout => "timeout",
            Self::BrokeOff => "broke_off",
            Self::Answer => "answer",
            Self::Refused => "refused",
            Self::Conflict => "conflict",
            Self::Client => "client",
        }
    }
}

/// The innermost cause: the outer ones only say that a request failed.
pub(super) fn root_cause(error: &reqwest::Error) -> String {
    let mut cause: &dyn Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    match cause.downcast_ref::<reqwest::Error>() {
        Some(error) if error.is_timeout() => "timed out".to_owned(),
        _ => shown(&cause.to_string()),
    }
}

/// Why a connection was not made, or broke off. The flag says whether TLS is to blame: then etcd has read no request.
pub(super) fn of_connection(error: &reqwest::Error, endpoint: &Url, security: &Security) -> (String, bool) {
    if let Some(error) = tls_error(error) {
        return (of_tls(error, endpoint, security), true);
    }
    let cause = match endpoint.scheme() {
        // A server that closes before it has read all of our first message resets the connection: the same end.
        "https" if error.is_connect() && is_reset(error) => HANDSHAKE_END.to_owned(),
        _ => root_cause(error),
    };
    let hint = match endpoint.scheme() {
        // As etcd does on one that begins with TLS where it speaks none.
        "https" if cause == HANDSHAKE_END => "; is it http://?",
        _ if error.is_connect() => "",
        "https" if security.cert.is_none() => "; does it want a client certificate (--etcd-cert, --etcd-key)?",
        // etcd closes a connection that does not begin with TLS where it speaks that.
        "http" => "; is it https://?",
        _ => "",
    };
    (cause + hint, false)
}

/// What to do about an answer with this status; empty where its own words say it.
pub(super) fn way_out(status: StatusCode, user: Option<&str>) -> String {
    match (status, user) {
        (StatusCode::UNAUTHORIZED, None) => {
            "; it wants a user: --etcd-user and --etcd-password-file (docs/etcd.md)".to_owned()
        }
        (StatusCode::UNAUTHORIZED, Some(user)) => format!(
            "; user {user} has another password there, or no role that gives it what was asked for (docs/etcd.md)"
        ),
        _ => String::new(),
    }
}

/// Whether an answer is what browsers are for.
pub(super) fn is_web_page(body: &[u8]) -> bool {
    body.trim_ascii_start().starts_with(b"<")
}

/// What to say of such an answer.
pub(super) fn a_web_page(status: StatusCode) -> String {
    format!(
        "answered {status} with a web page, not etcd's JSON; --etcd wants etcd's client URL, as a rule with port 2379"
    )
}

/// TLS's own error among the causes.
/// An error and all that caused it, the outermost first.
fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    let first: Option<&'a (dyn Error + 'static)> = Some(error);
    // An error within an io::Error is not its source: that is the source of the one within.
    std::iter::successors(first, |&cause| match cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        Some(inner) => Some(inner as &(dyn Error + 'static)),
        None => cause.source(),
    })
}

fn tls_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    causes(error).find_map(|cause| cause.downcast_ref())
}

fn is_reset(error: &(dyn Error + 'static)) -> bool {
    causes(error)
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|error| error.kind() == io::ErrorKind::ConnectionReset)
}

fn of_tls(error: &rustls::Error, endpoint: &Url, security: &Security) -> String {
    match error {
        rustls::Error::InvalidCertificate(error) => of_certificate(error, endpoint, security),
        rustls::Error::AlertReceived(alert) => of_alert(*alert, security),
        rustls::Error::InvalidMessage(_) => {
            let host = endpoint.host_str().unwrap_or_default();
            format!("it does not speak TLS; is it http://{host}?")
        }
        error => format!("TLS fails: {}", shown(&error.to_string())),
    }
}

fn of_certificate(error: &CertificateError, endpoint: &Url, security: &Security) -> String {
    match error {
        CertificateError::UnknownIssuer | CertificateError::BadSignature => match &security.ca {
            Some(ca) => format!(
                "its certificate is not of the CA in {}; give the CA that issued it with --etcd-ca",
                ca.display()
            ),
            None => "its certificate is of no CA that this system knows; give its CA with --etcd-ca".to_owned(),
        },
        CertificateError::Expired => {
            "its certificate has expired; renew it (or is this host's clock wrong?)".to_owned()
        }
        CertificateError::ExpiredContext { not_after, .. } => {
            format!("its certificate has expired, {}; renew it (or is this host's clock wrong?)", date(*not_after))
        }
        CertificateError::NotValidYet => "its certificate is not valid yet; is this host's clock wrong?".to_owned(),
        CertificateError::NotValidYetContext { not_before, .. } => {
            format!("its certificate is valid only from {} on; is this host's clock wrong?", date(*not_before))
        }
        CertificateError::NotValidForName => of_name(endpoint, &[]),
        CertificateError::NotValidForNameContext { presented, .. } => of_name(endpoint, presented),
        CertificateError::Revoked => "its certificate was revoked; renew it".to_owned(),
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "its certificate is none for a server; issue it with extendedKeyUsage serverAuth".to_owned()
        }
        error => format!("its certificate is not good: {}", shown(&error.to_string())),
    }
}

fn of_name(endpoint: &Url, presented: &[String]) -> String {
    let host = endpoint.host_str().unwrap_or_default();
    let others = match presented {
        [] => String::new(),
        names => format!(" but for {}", shown(&names.join(", "))),
    };
    format!(
        "its certificate is not for {host}{others}; name it in --etcd as its certificate does, or issue one with \
         {host} among its subject alternative names"
    )
}

/// What etcd says of our certificate.
fn of_alert(alert: AlertDescription, security: &Security) -> String {
    use AlertDescription as A;
    let of_certificate = matches!(
        alert,
        A::NoCertificate
            | A::BadCertificate
            | A::UnsupportedCertificate
            | A::CertificateRevoked
            | A::CertificateExpired
            | A::CertificateUnknown
            | A::UnknownCA
            | A::AccessDenied
            | A::CertificateRequired
    );
    match &security.cert {
        None if of_certificate => "it wants a client certificate; give one with --etcd-cert and --etcd-key".to_owned(),
        Some(cert) if of_certificate => format!(
            "it does not take the client certificate in {} ({alert:?}); etcd wants one of its --trusted-ca-file, that \
             has not expired, with extendedKeyUsage clientAuth",
            cert.display()
        ),
        _ => format!("it ends TLS with the alert {alert:?}"),
    }
}

fn date(time: UnixTime) -> String {
    let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    Timestamp::from_second(seconds).map_or_else(|_| "at an unknown time".to_owned(), |time| time.to_string())
}
