//! A way to a server that can be shut: connections through it end, and new ones are refused, as when the server's host dies.

use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// The way. It is open at first.
pub(crate) struct Gate {
    port: u16,
    to: String,
    task: Option<JoinSet<()>>,
}

impl Gate {
    /// Opens a way to `http://HOST:PORT`.
    pub(crate) async fn open(to: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut gate = Self { port, to: to.trim_start_matches("http://").to_owned(), task: None };
        gate.serve(listener);
        gate
    }

    /// The endpoint on this side.
    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub(crate) fn shut(&mut self) {
        self.task = None;
    }

    pub(crate) async fn open_again(&mut self) {
        self.serve(TcpListener::bind(("127.0.0.1", self.port)).await.unwrap());
    }

    fn serve(&mut self, listener: TcpListener) {
        let to = self.to.clone();
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (mut here, _) = listener.accept().await.unwrap();
                let to = to.clone();
                connections.spawn(async move {
                    let mut there = TcpStream::connect(&to).await.unwrap();
                    // How it ends is the business of both sides.
                    let _end = tokio::io::copy_bidirectional(&mut here, &mut there).await;
                });
            }
        });
        self.task = Some(task);
    }
}
