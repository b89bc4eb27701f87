//! The HTTP client that requests to etcd go through. It is made anew when the files it was made from change.
//!
//! Edge: reads the files that [`Security`] names. What they must hold is decided in `security`.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use reqwest::{Certificate, Client, Identity};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{info, warn};

use super::StoreError;
use super::security::{Credentials, Security, Stamp, Tls};
use super::trouble::root_cause;

/// How often the files are looked at, while there are requests: what a mended password file is heard of late by.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// The limit on connecting. A member that is there accepts within a round trip.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// How long an idle connection is kept. Longer than the pause between two refreshes at the default TTL.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// Whose certificates are believed without `--etcd-ca`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trust {
    /// No endpoint is `https`: none is read, so that an image without CA certificates will do.
    Nobody,
    /// The system's where it has any: whether there are `https` endpoints is not known yet.
    SystemIfAny,
    /// The system's.
    System,
}

/// What a request is sent with.
#[derive(Debug)]
pub(super) struct Current {
    pub(super) client: Client,
    pub(super) login: Option<Credentials>,
    tls: Tls,
}

/// Has the client, and keeps it up to date.
#[derive(Debug)]
pub(super) struct Connector {
    security: Security,
    trust: Trust,
    connect_timeout: Duration,
    current: watch::Sender<Arc<Current>>,
    files: Mutex<Files>,
}

/// What is known of the files.
#[derive(Debug)]
struct Files {
    /// As they were when they were read last.
    stamps: Vec<Stamp>,
    looked: Instant,
    /// What is wrong with them now, told once.
    told: Option<String>,
}

impl Connector {
    /// Reads the files and makes the first client.
    ///
    /// # Errors
    /// [`StoreError::Client`] where that is not possible.
    pub(super) fn new(security: Security, trust: Trust, request_timeout: Duration) -> Result<Self, StoreError> {
        let stamps = security.stamps();
        let (tls, login) = security.read().map_err(|error| StoreError::Client(error.to_string()))?;
        let connect_timeout = CONNECT_TIMEOUT.min(request_timeout);
        let client = client(&tls, trust, connect_timeout).map_err(StoreError::Client)?;
        let current = watch::Sender::new(Arc::new(Current { client, login, tls }));
        let files = Mutex::new(Files { stamps, looked: Instant::now(), told: None });
        Ok(Self { security, trust, connect_timeout, current, files })
    }

    /// What the flags say.
    pub(super) fn security(&self) -> &Security {
        &self.security
    }

    /// What to send a request with now. Whoever still waits for the answer to an earlier one is left to it.
    pub(super) fn current(&self) -> Arc<Current> {
        // One who finds another looking goes on with what there was.
        if let Ok(mut files) = self.files.try_lock()
            && !files.stamps.is_empty()
            && files.looked.elapsed() >= LOOK_EVERY
        {
            files.looked = Instant::now();
            self.look(&mut files);
        }
        self.current.borrow().clone()
    }

    /// Reads the files again if they are others. On any doubt what they were stays: they may be half-way written.
    fn look(&self, files: &mut Files) {
        let stamps = self.security.stamps();
        if stamps == files.stamps {
            files.told = None;
            return;
        }
        match self.renewed() {
            Ok(current) => {
                self.current.send_replace(Arc::new(current));
                files.stamps = stamps;
                files.told = None;
                info!("the certificates or the password for etcd have changed, and are used from now on");
            }
            Err(error) if files.told.as_ref() == Some(&error) => {}
            Err(error) => {
                warn!(
                    error,
                    "the certificates or the password for etcd have changed and are of no use; the former stay"
                );
                files.told = Some(error);
            }
        }
    }

    fn renewed(&self) -> Result<Current, String> {
        let (tls, login) = self.security.read().map_err(|error| error.to_string())?;
        let before = self.current.borrow().clone();
        // Another password is no reason to connect anew.
        let client =
            if tls == before.tls { before.client.clone() } else { client(&tls, self.trust, self.connect_timeout)? };
        Ok(Current { client, login, tls })
    }
}

fn client(tls: &Tls, trust: Trust, connect_timeout: Duration) -> Result<Client, String> {
    super::use_ring();
    super::only_by_files_and_dns();
    let builder = || {
        let builder = Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(connect_timeout)
            .pool_idle_timeout(POOL_IDLE_TIMEOUT)
            .http1_only();
        match &tls.identity {
            Some(pem) => Identity::from_pem(pem).map(|identity| builder.identity(identity)),
            None => Ok(builder),
        }
    };
    let made = match (&tls.ca, trust) {
        (Some(pem), _) => Certificate::from_pem_bundle(pem).and_then(|roots| builder()?.tls_certs_only(roots).build()),
        (None, Trust::Nobody) => builder().and_then(|builder| builder.tls_certs_only([]).build()),
        (None, Trust::System | Trust::SystemIfAny) => builder().and_then(reqwest::ClientBuilder::build),
    };
    let made = match made {
        Err(_) if trust == Trust::SystemIfAny && tls.ca.is_none() => {
            builder().and_then(|builder| builder.tls_certs_only([]).build())
        }
        made => made,
    };
    made.map_err(|error| {
        let hint = "for https endpoints the system's CA certificates (package ca-certificates) or --etcd-ca are needed";
        format!("{}; {hint}", root_cause(&error))
    })
}
