//! A plain HTTP/1.1 client that hides nothing: no retry, no redirect, no rewriting of the path.
//!
//! Tests count every failed request and send paths that no well-behaved client would, so they need exactly this.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use tokio::io::{
    AsyncBufRead, AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader,
};
use tokio::net::{TcpSocket, TcpStream, UnixStream};

/// The limit of one exchange, connecting included.
const LIMIT: Duration = Duration::from_secs(10);

/// What came back.
#[derive(Debug, Clone)]
pub struct Reply {
    /// The status code.
    pub status: u16,
    /// Header names (lower case) and values, in the order they came.
    pub headers: Vec<(String, String)>,
    /// The body; what is not UTF-8 is replaced.
    pub body: String,
}

impl Reply {
    /// The first header of that name (lower case).
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }
}

/// One connection, for one request after another.
pub struct Connection<S = TcpStream> {
    stream: BufReader<S>,
}

impl Connection {
    /// Connects.
    pub async fn open(address: SocketAddr) -> io::Result<Connection> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Connection { stream: BufReader::new(stream) })
    }

    /// Connects with the least room for what is not read, so that whoever sends has to wait.
    pub async fn open_narrow(address: SocketAddr) -> io::Result<Connection> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        // The kernel takes its own least in place of it.
        socket.set_recv_buffer_size(1)?;
        Ok(Connection { stream: BufReader::new(socket.connect(address).await?) })
    }
}

impl Connection<UnixStream> {
    /// Connects to a unix socket.
    pub async fn open_unix(path: &Path) -> io::Result<Connection<UnixStream>> {
        Ok(Connection { stream: BufReader::new(UnixStream::connect(path).await?) })
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    /// Sends one request and reads its whole reply. `headers` come in addition to `Host` and the length.
    pub async fn exchange(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> io::Result<Reply> {
        self.send(method, path, headers, body).await?;
        read_reply(&mut self.stream).await
    }

    /// Sends a `GET` whose reply does not end, reads its head, and gives the status; [`Connection::line`] reads on.
    pub async fn stream(&mut self, path: &str) -> io::Result<u16> {
        self.stream_of("GET", path, "").await
    }

    /// As [`Connection::stream`], with any method and a body of JSON.
    pub async fn stream_of(&mut self, method: &str, path: &str, body: &str) -> io::Result<u16> {
        let headers: &[_] = if body.is_empty() { &[] } else { &[("Content-Type", "application/json")] };
        self.send(method, path, headers, body).await?;
        let (first, _) = read_head(&mut self.stream).await?;
        status_of(&first)
    }

    /// The next line, of a reply in whose chunks lines do not overlap.
    pub async fn line(&mut self) -> io::Result<String> {
        let mut line = Vec::new();
        while !line.ends_with(b"\n") {
            let chunk = read_chunk(&mut self.stream).await?;
            if chunk.is_empty() {
                return Err(io::Error::new(ErrorKind::UnexpectedEof, "the stream ended"));
            }
            line.extend_from_slice(&chunk);
        }
        Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
    }

    async fn send(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> io::Result<()> {
        let mut request = format!("{method} {path} HTTP/1.1\r\n");
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            request.push_str("Host: localhost\r\n");
        }
        for (name, value) in headers {
            request.push_str(&format!("{name}: {value}\r\n"));
        }
        if !body.is_empty() {
            request.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        request.push_str("\r\n");
        request.push_str(body);
        self.stream.get_mut().write_all(request.as_bytes()).await
    }
}

/// A connection that was upgraded, as a websocket is: what is sent comes back, through whatever lies between.
pub struct Tunnel {
    stream: BufReader<TcpStream>,
}

impl Tunnel {
    /// Connects and asks for the upgrade.
    pub async fn open(address: SocketAddr) -> io::Result<Tunnel> {
        let mut stream = Connection::open(address).await?.stream;
        let request = "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n";
        stream.get_mut().write_all(request.as_bytes()).await?;
        let (first, _) = read_head(&mut stream).await?;
        if first.contains(" 101 ") { Ok(Tunnel { stream }) } else { Err(bad(&first)) }
    }

    /// Sends a line and waits until it has come back.
    pub async fn echo(&mut self) -> io::Result<()> {
        let exchange = async {
            self.stream.get_mut().write_all(b"still there?\n").await?;
            read_line(&mut self.stream).await
        };
        let line = tokio::time::timeout(LIMIT, exchange)
            .await
            .map_err(|_| io::Error::new(ErrorKind::TimedOut, "no echo in time"))??;
        if line == "still there?" { Ok(()) } else { Err(io::Error::new(ErrorKind::InvalidData, line)) }
    }

    /// Waits until the other side ends it.
    pub async fn ended(&mut self) {
        // Reset or closed is the same here.
        let _end = self.stream.fill_buf().await;
    }
}

/// One request over a connection of its own, which both sides close after it.
pub async fn request(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> io::Result<Reply> {
    let exchange = async {
        let mut all = headers.to_vec();
        all.push(("Connection", "close"));
        Connection::open(address).await?.exchange(method, path, &all, body).await
    };
    tokio::time::timeout(LIMIT, exchange)
        .await
        .map_err(|_| io::Error::new(ErrorKind::TimedOut, "no whole reply in time"))?
}

/// `GET` of a path.
pub async fn get(address: SocketAddr, path: &str) -> io::Result<Reply> {
    request(address, "GET", path, &[], "").await
}

/// `GET /` with a `Host` header: which virtual host answers?
pub async fn get_host(address: SocketAddr, host: &str) -> io::Result<Reply> {
    request(address, "GET", "/", &[("Host", host)], "").await
}

async fn read_reply(stream: &mut (impl AsyncBufRead + Unpin)) -> io::Result<Reply> {
    let (first, headers) = read_head(stream).await?;
    let mut reply = Reply { status: status_of(&first)?, headers, body: String::new() };
    let mut body = Vec::new();
    if reply.header("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked")) {
        loop {
            let chunk = read_chunk(stream).await?;
            if chunk.is_empty() {
                break;
            }
            body.extend(chunk);
        }
    } else if let Some(length) = reply.header("content-length").map(str::to_owned) {
        body = vec![0; length.parse().map_err(|_| bad(&length))?];
        stream.read_exact(&mut body).await?;
    } else {
        stream.read_to_end(&mut body).await?;
    }
    reply.body = String::from_utf8_lossy(&body).into_owned();
    Ok(reply)
}

fn status_of(first: &str) -> io::Result<u16> {
    first.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or_else(|| bad(first))
}

/// One chunk (RFC 9112, section 7.1); the last is empty.
async fn read_chunk(stream: &mut (impl AsyncBufRead + Unpin)) -> io::Result<Vec<u8>> {
    let size = read_line(stream).await?;
    let size = usize::from_str_radix(size.split(';').next().unwrap_or_default().trim(), 16).map_err(|_| bad(&size))?;
    let mut chunk = vec![0; size + 2];
    stream.read_exact(&mut chunk).await?;
    chunk.truncate(size);
    Ok(chunk)
}

/// Reads a request's or reply's head: the first line, and the headers with names in lower case.
pub(crate) async fn read_head(stream: &mut (impl AsyncBufRead + Unpin)) -> io::Result<(String, Vec<(String, String)>)> {
    let first = read_line(stream).await?;
    let mut headers = Vec::new();
    loop {
        let line = read_line(stream).await?;
        if line.is_empty() {
            return Ok((first, headers));
        }
        let (name, value) = line.split_once(':').ok_or_else(|| bad(&line))?;
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
}

async fn read_line(stream: &mut (impl AsyncBufRead + Unpin)) -> io::Result<String> {
    let mut line = Vec::new();
    if stream.read_until(b'\n', &mut line).await? == 0 {
        return Err(io::Error::new(ErrorKind::UnexpectedEof, "connection closed"));
    }
    Ok(String::from_utf8_lossy(&line).trim_end_matches(['\r', '\n']).to_owned())
}

fn bad(line: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, format!("not HTTP: {line:?}"))
}

/// Percent-encodes every byte that is not a letter, a digit or one of `-_.~` (RFC 3986, section 2.3).
pub fn encode(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
        out
    })
}

/// What [`encode`] was given; bytes that are no text are replaced, and so are those after a `%` that begins no code.
pub fn decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, others @ ..] = rest {
        let code = others.get(..2).filter(|_| *first == b'%').and_then(|code| std::str::from_utf8(code).ok());
        match code.and_then(|code| u8::from_str_radix(code, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &others[2..];
            }
            None => {
                bytes.push(if *first == b'+' { b' ' } else { *first });
                rest = others;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
