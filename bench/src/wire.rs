//! A blocking HTTP/1.1 client and HAProxy's socket: the least that lies between a clock and the program under test.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, anyhow, ensure};

/// The longest wait for any one answer; a long poll is not waited for longer either.
const LIMIT: Duration = Duration::from_secs(10);

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// `X-Etcd-Index`, or 0.
    pub(crate) etcd_index: u64,
    pub(crate) body: String,
}

/// A connection that is kept for one request after another.
pub(crate) struct Kept {
    address: SocketAddr,
    stream: BufReader<TcpStream>,
}

impl Kept {
    pub(crate) fn open(address: SocketAddr) -> anyhow::Result<Self> {
        Self::open_for(address, LIMIT)
    }

    /// One on which neither the connection nor any answer may take longer than this.
    pub(crate) fn open_for(address: SocketAddr, limit: Duration) -> anyhow::Result<Self> {
        let stream =
            TcpStream::connect_timeout(&address, limit).with_context(|| format!("{address} cannot be reached"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(limit))?;
        Ok(Self { address, stream: BufReader::new(stream) })
    }

    /// One request and its whole answer.
    pub(crate) fn ask(&mut self, method: &str, path: &str, body: &str, close: bool) -> anyhow::Result<Answer> {
        let length = if body.is_empty() {
            String::new()
        } else {
            format!("Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n", body.len())
        };
        let close = if close { "Connection: close\r\n" } else { "" };
        let request = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n{length}{close}\r\n{body}");
        self.stream.get_mut().write_all(request.as_bytes())?;
        read_answer(&mut self.stream).with_context(|| format!("{}: {method} {path}", self.address))
    }
}

fn read_answer(stream: &mut BufReader<TcpStream>) -> anyhow::Result<Answer> {
    let first = read_line(stream)?;
    let status = first.split(' ').nth(1).and_then(|code| code.parse().ok());
    let status = status.ok_or_else(|| anyhow!("not HTTP: {first:?}"))?;
    let (mut length, mut chunked, mut etcd_index) = (0, false, 0);
    loop {
        let line = read_line(stream)?;
        let Some((name, value)) = line.split_once(':') else { break };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.trim().parse()?,
            "transfer-encoding" => chunked = true,
            "x-etcd-index" => etcd_index = value.trim().parse()?,
            _ => {}
        }
    }
    let mut body = Vec::new();
    while chunked {
        let size = usize::from_str_radix(read_line(stream)?.trim(), 16)?;
        let start = body.len();
        body.resize(start + size + 2, 0);
        stream.read_exact(&mut body[start..])?;
        body.truncate(start + size);
        chunked = size > 0;
    }
    if body.is_empty() {
        body.resize(length, 0);
        stream.read_exact(&mut body)?;
    }
    Ok(Answer { status, etcd_index, body: String::from_utf8_lossy(&body).into_owned() })
}

fn read_line(stream: &mut BufReader<TcpStream>) -> anyhow::Result<String> {
    let mut line = String::new();
    ensure!(stream.read_line(&mut line)? > 0, "closed");
    line.truncate(line.trim_end().len());
    Ok(line)
}

/// One request over a connection of its own: the body of a 200, else the status.
pub(crate) fn get_once(address: SocketAddr) -> anyhow::Result<String> {
    get_within(address, LIMIT)
}

/// As [`get_once`], with another limit.
pub(crate) fn get_within(address: SocketAddr, limit: Duration) -> anyhow::Result<String> {
    let answer = Kept::open_for(address, limit)?.ask("GET", "/", "", true)?;
    Ok(if answer.status == 200 { answer.body } else { answer.status.to_string() })
}

/// Commands to HAProxy's socket on one line, over one connection, and all it says.
pub(crate) fn cli(socket: &Path, commands: &str) -> anyhow::Result<String> {
    let ask = || {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.write_all(format!("{commands}\n").as_bytes())?;
        let mut reply = String::new();
        stream.read_to_string(&mut reply)?;
        Ok::<_, std::io::Error>(reply)
    };
    ask().with_context(|| format!("{}: {}", socket.display(), commands.chars().take(80).collect::<String>()))
}

/// One command to HAProxy's master, whose socket stays open until we close our side.
pub(crate) fn master_cli(socket: &Path, command: &str) -> anyhow::Result<String> {
    let mut stream = UnixStream::connect(socket).with_context(|| socket.display().to_string())?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(format!("{command}\n").as_bytes())?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply)?;
    Ok(reply)
}
