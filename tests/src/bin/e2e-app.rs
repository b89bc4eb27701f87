//! The application in the tests' containers: an HTTP server that does as it is told. The image `e2e/app` holds nothing else.
//!
//! `e2e-app` serves, and reads from its environment:
//!
//! - `LISTEN`: its ports, with commas (8000); empty for none
//! - `DELAY_MS`: how long after its start it listens (0)
//! - `LINGER_MS`: told to stop (SIGTERM, SIGINT), how long it goes on before it ends (0); meanwhile it takes new connections
//!
//! It says on standard output what it is asked for. Each path but these is answered with `Hello from HOSTNAME`:
//!
//! - `/become/503`: from now on every other path is answered with that status
//! - `/become/mute`: from now on every other path gets no answer
//! - `/become/deaf`: it closes its ports, for ever
//! - `/slow/300`: the answer comes after so many milliseconds
//!
//! Other commands, for `docker exec` and health checks, which Docker runs by a shell: this program is the image's `/bin/sh` too.
//!
//! - `e2e-app is-well`: 0 where the server answers with 200, else 1
//! - `e2e-app sleep MS`: 0 after so many milliseconds
//! - `e2e-app says MIB`: 0 after so many MiB on standard output
//! - `e2e-app fail`: 1

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};

/// The status that everything is answered with; 0 for no answer.
static STATUS: AtomicU16 = AtomicU16::new(200);
/// Whether the ports are closed.
static DEAF: AtomicBool = AtomicBool::new(false);

fn main() -> ExitCode {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, script] = args.as_slice()
        && flag == "-c"
    {
        args = script.split_whitespace().map(str::to_owned).collect();
    }
    let words: Vec<&str> =
        args.iter().map(String::as_str).filter(|word| !matches!(*word, "exec" | "/e2e-app")).collect();
    match words.as_slice() {
        [] => serve(),
        ["is-well"] => is_well(),
        ["sleep", time] => {
            thread::sleep(milliseconds(time));
            ExitCode::SUCCESS
        }
        ["says", mib] => mib.parse().map_or(ExitCode::FAILURE, says),
        _ => ExitCode::FAILURE,
    }
}

fn says(mib: usize) -> ExitCode {
    let (mut stdout, piece) = (std::io::stdout(), vec![b'x'; 1 << 20]);
    let said = (0..mib).try_for_each(|_| stdout.write_all(&piece));
    said.map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS)
}

fn serve() -> ExitCode {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.thread_block().expect("signals can be blocked");

    thread::sleep(milliseconds(&variable("DELAY_MS", "0")));
    for port in ports() {
        let listener = TcpListener::bind(("0.0.0.0", port)).expect("the port is free");
        println!("listening on {port}");
        thread::spawn(move || accept(&listener));
    }
    let signal = signals.wait().expect("signals can be waited for");
    println!("{signal}");
    thread::sleep(milliseconds(&variable("LINGER_MS", "0")));
    ExitCode::SUCCESS
}

fn accept(listener: &TcpListener) {
    for stream in listener.incoming() {
        if DEAF.load(Ordering::SeqCst) {
            return;
        }
        let Ok(stream) = stream else { continue };
        thread::spawn(move || while answer(&stream).is_some() {});
    }
}

/// Reads a request and answers it; `None` where the connection is over.
fn answer(stream: &TcpStream) -> Option<()> {
    let mut reader = BufReader::new(stream);
    let mut first = String::new();
    reader.read_line(&mut first).ok().filter(|&count| count > 0)?;
    let mut line = String::new();
    while line.trim_end() != "" || line.is_empty() {
        line.clear();
        reader.read_line(&mut line).ok().filter(|&count| count > 0)?;
    }
    let path = first.split(' ').nth(1)?;
    println!("asked for {path}");
    let mut status = STATUS.load(Ordering::SeqCst);
    match path.split('/').collect::<Vec<_>>().as_slice() {
        ["", "become", what] => {
            status = 200;
            become_so(what);
        }
        ["", "slow", time] => thread::sleep(milliseconds(time)),
        _ => {}
    }
    if status == 0 {
        loop {
            thread::park();
        }
    }
    let body = format!("Hello from {}\n", variable("HOSTNAME", ""));
    let shown = if first.starts_with("HEAD ") { "" } else { &body };
    let reply = format!("HTTP/1.1 {status} It is so\r\nContent-Length: {}\r\n\r\n{shown}", body.len());
    { stream }.write_all(reply.as_bytes()).ok()
}

fn become_so(what: &str) {
    match what {
        "mute" => STATUS.store(0, Ordering::SeqCst),
        "deaf" => {
            DEAF.store(true, Ordering::SeqCst);
            // Each listener wakes, and goes.
            for port in ports() {
                let _woken = TcpStream::connect(("127.0.0.1", port));
            }
        }
        status => STATUS.store(status.parse().expect("a status"), Ordering::SeqCst),
    }
}

fn is_well() -> ExitCode {
    let ask = || {
        let mut stream = TcpStream::connect(("127.0.0.1", *ports().first()?)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(1))).ok()?;
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n").ok()?;
        let mut status = [0; 12];
        stream.read_exact(&mut status).ok()?;
        status.ends_with(b" 200").then_some(())
    };
    if ask().is_some() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn ports() -> Vec<u16> {
    let listen = variable("LISTEN", "8000");
    listen.split(',').filter(|port| !port.is_empty()).map(|port| port.parse().expect("a port")).collect()
}

fn variable(name: &str, default: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| default.to_owned())
}

fn milliseconds(text: &str) -> Duration {
    Duration::from_millis(text.parse().expect("milliseconds"))
}
