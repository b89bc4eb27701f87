//! The way to Docker's socket: a connection for each request, from which no more is read than is allowed. Edge. It knows nothing
//! of what is asked; the client (bollard) reads each answer whole, and leaves it to this room how long that may be.

use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bollard::errors::Error as Bollard;
use bollard::{API_DEFAULT_VERSION, BollardRequest};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{HOST, HeaderValue};
use hyper::{Response, Uri};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;

/// How much is read at once, in bytes; a head has at most as much. It is little beside what one event may have, so that what is read
/// of the next ones beyond its end hardly counts for it.
const AT_ONCE: usize = 32 << 10;

/// How much may be read of what comes of one request, and how much was.
#[derive(Debug)]
pub(super) struct Allowance {
    /// In bytes.
    pub(super) limit: usize,
    read: AtomicUsize,
}

impl Allowance {
    /// What came until now was taken in: as much may come again. Not where the connection was given up already.
    pub(super) fn renew(&self) {
        let _given_up =
            self.read.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |read| (read <= self.limit).then_some(0));
    }

    /// Whether more came, so that the connection was given up.
    pub(super) fn is_exceeded(&self) -> bool {
        self.read.load(Ordering::Relaxed) > self.limit
    }

    fn take(&self, bytes: usize) -> io::Result<()> {
        self.read.fetch_add(bytes, Ordering::Relaxed);
        if self.is_exceeded() { Err(io::Error::other("the answer is too long")) } else { Ok(()) }
    }
}

/// A client of the Docker behind this socket, whose requests each go through [`allow`] first. Asks nothing yet.
///
/// # Errors
/// As the library has it: none for what is given here.
pub(super) fn client(socket: &Path, timeout: Duration) -> Result<bollard::Docker, Bollard> {
    let socket = socket.to_owned();
    let transport = move |request| send(socket.clone(), request);
    // The name is Docker's to ignore: a request has to have one.
    bollard::Docker::connect_with_custom_transport(
        transport,
        Some("http://docker"),
        timeout.as_secs(),
        API_DEFAULT_VERSION,
    )
}

/// The same client for one request, of which at most `limit` bytes are read: head, body, and what comes after an upgrade.
pub(super) fn allow(client: &bollard::Docker, limit: usize) -> (bollard::Docker, Arc<Allowance>) {
    let allowance = Arc::new(Allowance { limit, read: AtomicUsize::new(0) });
    let with_request = Arc::clone(&allowance);
    let client = client.clone().with_request_modifier(move |mut request| {
        request.extensions_mut().insert(Arc::clone(&with_request));
        request
    });
    (client, allowance)
}

async fn send(socket: PathBuf, mut request: BollardRequest) -> Result<Response<Incoming>, Bollard> {
    let allowance = request.extensions_mut().remove::<Arc<Allowance>>();
    let allowance = allowance.ok_or_else(|| io::Error::other("nothing says how long the answer may be"))?;
    let stream = Bounded { stream: UnixStream::connect(socket).await?, allowance };
    let (mut sender, connection) = http1::Builder::new().max_buf_size(AT_ONCE).handshake(TokioIo::new(stream)).await?;
    // Nobody holds it: it ends with the request, when the answer was read or nobody waits for it any more, and what went wrong with it the
    // answer says. A stream of events has it for as long as it is followed.
    tokio::spawn(connection.with_upgrades());
    let path = request.uri().path_and_query().cloned();
    *request.uri_mut() = path.map(Uri::from).unwrap_or_default();
    request.headers_mut().insert(HOST, HeaderValue::from_static("docker"));
    Ok(sender.send_request(request).await?)
}

/// A connection that fails once more was read from it than is allowed.
#[derive(Debug)]
struct Bounded {
    stream: UnixStream,
    allowance: Arc<Allowance>,
}

impl AsyncRead for Bounded {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, into))?;
        Poll::Ready(self.allowance.take(into.filled().len() - before))
    }
}

impl AsyncWrite for Bounded {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, from)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
