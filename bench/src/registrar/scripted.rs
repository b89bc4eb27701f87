//! A scripted Docker and the one application of all its containers, on a thread of their own: the measurement may block.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::mpsc;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use e2e::backend::Backend;
use e2e::fake_docker::{FakeDocker, Spec};
use tokio::sync::oneshot;

use super::LIMIT;

pub(crate) struct Scripted {
    pub(crate) docker: FakeDocker,
    port: u16,
    /// Dropping it ends the thread.
    _running: oneshot::Sender<()>,
}

impl Scripted {
    pub(crate) fn start() -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (running, ended) = oneshot::channel::<()>();
        let (ready, made) = mpsc::channel();
        std::thread::spawn(move || {
            runtime.block_on(async move {
                let application = Backend::start_at("web", SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))).await;
                let _nobody_waits = ready.send((FakeDocker::start(), application.address().port()));
                let _dropped = ended.await;
            });
        });
        let (docker, port) = made.recv_timeout(LIMIT).context("the scripted Docker")?;
        Ok(Self { docker, port, _running: running })
    }

    pub(crate) fn socket(&self) -> String {
        self.docker.path().display().to_string()
    }

    /// A container of the service `web` with an address of its own; the application answers on all of them.
    pub(crate) fn spec(&self, number: u16) -> Spec {
        let [high, low] = number.to_be_bytes();
        let own = (Ipv4Addr::new(127, 99, high, low), self.port);
        let spec = Spec::new(&format!("web-{number}"), "web", own, 30_000 + number);
        // As much as people write.
        spec.label("SERVICE_TAGS", "blue,v2").label("SERVICE_REGION", "eu").label("com.docker.compose.project", "shop")
    }

    /// Waits until so many follow the events.
    pub(crate) fn wait_followed(&self, count: u64) -> anyhow::Result<()> {
        let begun = Instant::now();
        while self.docker.requests("/events") < count {
            ensure!(begun.elapsed() < LIMIT, "nobody follows the scripted Docker's events");
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        Ok(())
    }
}
