//! What etcd is reached with: whom to believe to be etcd, and what shows etcd who we are. Reads files, and nothing else.
//!
//! What is secret is never part of a message, nor of what `Debug` prints.

use std::env;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{InconsistentKeys, RootCertStore};

/// The largest file that is read: a bundle of all public CAs has some 200 KB.
const FILE_LIMIT: u64 = 4 << 20;

/// What TLS and users are to be used with etcd, as the flags say it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Security {
    /// The CA certificates, as PEM, that are believed instead of the system's.
    pub ca: Option<PathBuf>,
    /// The client's certificate, with those that lead to its CA behind it, as PEM.
    pub cert: Option<PathBuf>,
    /// The key of that certificate, as PEM.
    pub key: Option<PathBuf>,
    /// The user's name.
    pub user: Option<String>,
    /// The user's password.
    pub password: Option<Password>,
}

/// Where a password comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Password {
    /// This is it.
    Given(Secret),
    /// The first line of this file.
    File(PathBuf),
}

impl Password {
    /// From a file that a flag names, else from an environment variable that is set to something. A password is no flag
    /// itself: every user of the host sees those.
    pub fn from_file_or_variable(file: Option<PathBuf>, variable: &str) -> Option<Self> {
        let given = || env::var(variable).ok().filter(|text| !text.is_empty()).map(|text| Self::Given(Secret(text)));
        file.map(Self::File).or_else(given)
    }
}

/// A text that is not shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// Why TLS or users cannot be used as the flags say.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SecurityError {
    /// Flags that need each other.
    #[error("{0}")]
    Usage(&'static str),
    /// What a flag names is of no use.
    #[error("{flag} {}: {reason}", .path.display())]
    File {
        /// The flag.
        flag: &'static str,
        /// What it names.
        path: PathBuf,
        /// What is wrong, and what is right.
        reason: String,
    },
}

/// A user with the password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Credentials {
    pub(super) user: String,
    pub(super) password: Secret,
}

/// What was read of the files for TLS, and found good.
#[derive(Clone, PartialEq, Eq, Default)]
pub(super) struct Tls {
    pub(super) ca: Option<Vec<u8>>,
    /// The certificates and the key, in one text.
    pub(super) identity: Option<Vec<u8>>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("ca", &self.ca.is_some()).field("identity", &self.identity.is_some()).finish()
    }
}

/// By what a file is known to be another one than before.
pub(super) type Stamp = Option<(u64, u64, i64, i64, u64)>;

impl Security {
    /// Makes sure that the flags go together and the files can be used, before anything begins.
    ///
    /// # Errors
    /// The first that is of no use, and why.
    pub fn check(&self) -> Result<(), SecurityError> {
        self.read().map(drop)
    }

    /// Whether certificates of one's own are used: then nothing goes to etcd without TLS unless an endpoint says `http://`.
    pub(super) fn has_tls(&self) -> bool {
        self.ca.is_some() || self.cert.is_some()
    }

    fn files(&self) -> impl Iterator<Item = &Path> {
        let password = match &self.password {
            Some(Password::File(path)) => Some(path),
            Some(Password::Given(_)) | None => None,
        };
        [self.ca.as_ref(), self.cert.as_ref(), self.key.as_ref(), password].into_iter().flatten().map(PathBuf::as_path)
    }

    /// What the files look like from outside. `None` for one that cannot be looked at.
    pub(super) fn stamps(&self) -> Vec<Stamp> {
        let stamp = |path| {
            let file = fs::metadata(path).ok()?;
            Some((file.dev(), file.ino(), file.mtime(), file.mtime_nsec(), file.size()))
        };
        self.files().map(stamp).collect()
    }

    /// Reads the files, and makes sure that they can be used.
    pub(super) fn read(&self) -> Result<(Tls, Option<Credentials>), SecurityError> {
        let ca = self.ca.as_deref().map(read_ca).transpose()?;
        let identity = match (&self.cert, &self.key) {
            (Some(cert), Some(key)) => Some(read_identity(cert, key)?),
            (None, None) => None,
            (Some(_), None) => return Err(SecurityError::Usage("--etcd-cert needs the certificate's key: --etcd-key")),
            (None, Some(_)) => return Err(SecurityError::Usage("--etcd-key needs the key's certificate: --etcd-cert")),
        };
        let login = match (&self.user, &self.password) {
            (Some(user), Some(password)) => Some(Credentials { user: name(user)?, password: read_password(password)? }),
            (None, None) => None,
            (Some(_), None) => {
                return Err(SecurityError::Usage(
                    "--etcd-user needs a password: --etcd-password-file, or the environment variable for it",
                ));
            }
            (None, Some(_)) => {
                return Err(SecurityError::Usage("a password for etcd was given, and no user: --etcd-user"));
            }
        };
        Ok((Tls { ca, identity }, login))
    }
}

/// A user's name must fit into HTTP's header.
fn name(user: &str) -> Result<String, SecurityError> {
    if user.is_empty() || user.contains(':') || user.chars().any(char::is_control) {
        return Err(SecurityError::Usage("--etcd-user: a name is not empty, and has no ':' and no control characters"));
    }
    Ok(user.to_owned())
}

const CA: &str = "--etcd-ca";
const CERT: &str = "--etcd-cert";
const KEY: &str = "--etcd-key";
const PASSWORD: &str = "--etcd-password-file";

fn read_ca(path: &Path) -> Result<Vec<u8>, SecurityError> {
    let pem = read(CA, path)?;
    let mut roots = RootCertStore::empty();
    for certificate in certificates(CA, path, &pem)? {
        roots.add(certificate).map_err(|error| refused(CA, path, format!("it holds no CA certificate: {error}")))?;
    }
    Ok(pem)
}

fn read_identity(cert: &Path, key: &Path) -> Result<Vec<u8>, SecurityError> {
    let mut pem = read(CERT, cert)?;
    let chain = certificates(CERT, cert, &pem)?;
    let key_pem = read(KEY, key)?;
    let private = PrivateKeyDer::from_pem_slice(&key_pem).map_err(|_| {
        let encrypted = key_pem.windows(9).any(|bytes| bytes == b"ENCRYPTED");
        let reason = if encrypted {
            "its key is encrypted; decrypt it first: openssl pkey -in FILE -out KEY"
        } else {
            "it holds no private key as PEM (-----BEGIN PRIVATE KEY-----)"
        };
        refused(KEY, key, reason)
    })?;
    super::use_ring();
    let provider = rustls::crypto::CryptoProvider::get_default();
    let provider = provider.map_or_else(|| Arc::new(rustls::crypto::ring::default_provider()), Arc::clone);
    CertifiedKey::from_der(chain, private, &provider).map_err(|error| match error {
        rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
            refused(KEY, key, format!("it is not the key of the certificate in {}", cert.display()))
        }
        error => refused(KEY, key, format!("it cannot be used with the certificate in {}: {error}", cert.display())),
    })?;
    pem.push(b'\n');
    pem.extend(key_pem);
    Ok(pem)
}

fn certificates(flag: &'static str, path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, SecurityError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(refused(flag, path, "it holds no whole certificate as PEM (-----BEGIN CERTIFICATE-----)")),
    }
}

fn read_password(password: &Password) -> Result<Secret, SecurityError> {
    let path = match password {
        Password::Given(secret) => return Ok(secret.clone()),
        Password::File(path) => path,
    };
    let text = String::from_utf8(read(PASSWORD, path)?).map_err(|_| refused(PASSWORD, path, "it is no text"))?;
    let line = text.strip_suffix('\n').unwrap_or(&text);
    let line = line.strip_suffix('\r').unwrap_or(line);
    if line.is_empty() {
        return Err(refused(PASSWORD, path, "it is empty; it must hold the password alone, on one line"));
    }
    if line.chars().any(char::is_control) {
        return Err(refused(PASSWORD, path, "it must hold the password alone, on one line"));
    }
    Ok(Secret(line.to_owned()))
}

fn read(flag: &'static str, path: &Path) -> Result<Vec<u8>, SecurityError> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(FILE_LIMIT + 1).read_to_end(&mut bytes));
    match read {
        Ok(_) if bytes.len() as u64 > FILE_LIMIT => Err(refused(flag, path, "it is too large to be what it should be")),
        Ok(_) => Ok(bytes),
        Err(error) => Err(refused(flag, path, unreadable(&error))),
    }
}

fn unreadable(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "there is no such file".to_owned(),
        io::ErrorKind::PermissionDenied => "this user may not read it".to_owned(),
        _ => format!("it cannot be read: {error}"),
    }
}

fn refused(flag: &'static str, path: &Path, reason: impl Into<String>) -> SecurityError {
    SecurityError::File { flag, path: path.to_owned(), reason: reason.into() }
}
