//! What servers still have to do, asked of HAProxy's worker and, where its master can be asked, of the old workers too that
//! reloads have left.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::reload::{Reloader, old_workers, parse_workers};
use super::runtime::{RuntimeError, unknown};
use super::socket::ask;

/// The limit on a question: what `show stat` says of 10,000 servers takes 0.2 s.
pub(super) const QUESTION_LIMIT: Duration = Duration::from_secs(3);
/// All servers of all backends, and nothing else (management guide, section 9.3, "show stat"; 4 is "servers").
pub(super) const SHOW_SERVERS: &str = "show stat -1 4 -1";

/// One server of one worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerLoad {
    /// Its name.
    pub name: String,
    /// Where it is; none where HAProxy does not tell.
    pub address: Option<SocketAddr>,
    /// Whether it may get new requests: it has a weight, and no operator has taken it out.
    pub gets_new: bool,
    /// What runs on it, and what waits for it. Idle connections in HAProxy's pool are none.
    pub sessions: u64,
}

/// The servers of one worker, of those that were asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerLoad {
    /// A reload has left it: it takes no new clients, but those that it has may ask again.
    pub is_old: bool,
    /// Its servers.
    pub servers: Vec<ServerLoad>,
}

/// Whom to ask.
#[derive(Debug, Clone)]
pub enum Workers {
    /// HAProxy's master, which hands a question on to each of its workers.
    Master(PathBuf),
    /// The worker itself. Old ones cannot be asked, but may be known to be there.
    Worker {
        /// Its stats socket.
        socket: PathBuf,
        /// The way by which it was reloaded.
        reloader: Reloader,
    },
    /// Nobody.
    OutOfReach,
}

impl Workers {
    /// Whom to ask of an HAProxy that is reached in these ways.
    pub fn new(reloader: &Reloader, runtime_socket: Option<PathBuf>) -> Self {
        match (reloader, runtime_socket) {
            (Reloader::Socket(master), _) => Self::Master(master.clone()),
            (Reloader::Supervised(supervisor), _) => Self::Master(supervisor.master_socket().to_owned()),
            (_, Some(socket)) => Self::Worker { socket, reloader: reloader.clone() },
            (_, None) => Self::OutOfReach,
        }
    }

    /// What the servers have to do of which `is_meant` says so, by name and address. None where not all workers can be asked.
    ///
    /// # Errors
    /// HAProxy does not answer, or in a way that is not known.
    pub async fn loads(
        &self,
        is_meant: impl Fn(&str, Option<SocketAddr>) -> bool,
    ) -> Result<Option<Vec<WorkerLoad>>, RuntimeError> {
        let master = match self {
            Self::Master(socket) => socket,
            Self::Worker { socket, reloader } => {
                if old_workers(reloader).await {
                    return Ok(None);
                }
                let reply = ask(socket, SHOW_SERVERS, QUESTION_LIMIT).await?;
                let servers = parse_servers(&reply, &is_meant).ok_or_else(|| unknown(SHOW_SERVERS, &reply))?;
                return Ok(Some(vec![WorkerLoad { is_old: false, servers }]));
            }
            Self::OutOfReach => return Ok(None),
        };
        let processes = async || {
            let reply = ask(master, "show proc", QUESTION_LIMIT).await?;
            let workers = parse_workers(&reply).filter(|workers| workers.iter().any(|worker| !worker.is_old));
            workers.ok_or_else(|| unknown("show proc", &reply))
        };
        let mut loads = Vec::new();
        for worker in processes().await? {
            let command = format!("@!{} {SHOW_SERVERS}", worker.pid);
            let reply = ask(master, &command, QUESTION_LIMIT).await?;
            match parse_servers(&reply, &is_meant) {
                Some(servers) => loads.push(WorkerLoad { is_old: worker.is_old, servers }),
                // It may have ended meanwhile.
                None if processes().await?.iter().any(|known| known.pid == worker.pid) => {
                    return Err(unknown(&command, &reply));
                }
                None => {}
            }
        }
        Ok(Some(loads))
    }
}

/// Reads the reply to `show stat` for servers. None where it is not one, or a line of it is not understood: it might be the
/// one that counts.
pub(super) fn parse_servers(
    reply: &str,
    is_meant: impl Fn(&str, Option<SocketAddr>) -> bool,
) -> Option<Vec<ServerLoad>> {
    let mut records = Records::of(reply)?;
    let head = records.next()?;
    let column = |name: &str| head.iter().position(|field| *field == name);
    let (name, queued, running) = (column("svname")?, column("qcur")?, column("scur")?);
    let (status, weight, address) = (column("status")?, column("weight")?, column("addr")?);
    let mut servers = Vec::new();
    for record in records {
        if record.iter().all(|field| field.is_empty()) {
            continue;
        }
        let field = |at: usize| record.get(at).copied();
        let number = |at: usize| field(at).map(str::parse::<u64>);
        let (name, address) = (field(name)?, field(address)?.parse().ok());
        if !is_meant(name, address) {
            continue;
        }
        let is_out = field(status)?.starts_with("MAINT") || field(status)?.starts_with("DRAIN");
        servers.push(ServerLoad {
            name: name.to_owned(),
            address,
            gets_new: !is_out && number(weight)?.ok()? > 0,
            sessions: number(queued)?.ok()?.checked_add(number(running)?.ok()?)?,
        });
    }
    Some(servers)
}

/// The records of a CSV text. A field with a comma, a quote or a line feed in it stands in quotes, which stay on it.
pub(super) struct Records<'t>(&'t str);

impl<'t> Records<'t> {
    /// The records of a reply to `show stat`, the first of which names the columns. None where it is no such reply.
    pub(super) fn of(reply: &'t str) -> Option<Self> {
        reply.strip_prefix("# ").map(Self)
    }
}

impl<'t> Iterator for Records<'t> {
    type Item = Vec<&'t str>;

    fn next(&mut self) -> Option<Vec<&'t str>> {
        if self.0.is_empty() {
            return None;
        }
        let (mut fields, mut begin, mut is_quoted) = (Vec::new(), 0, false);
        for (at, byte) in self.0.bytes().enumerate() {
            match byte {
                b'"' => is_quoted = !is_quoted,
                b',' | b'\n' if !is_quoted => {
                    fields.push(&self.0[begin..at]);
                    begin = at + 1;
                    if byte == b'\n' {
                        self.0 = &self.0[begin..];
                        return Some(fields);
                    }
                }
                _ => {}
            }
        }
        fields.push(&self.0[begin..]);
        self.0 = "";
        Some(fields)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// HAProxy 2.6.12, without the columns in between.
    const STAT: &str = "# pxname,svname,qcur,qmax,scur,smax,status,weight,last_chk,addr,cookie,\n\
        b,10.0.0.1_80,2,2,3,5,UP,0,,10.0.0.1:80,,\n\
        b,--1_81,0,0,0,5,UP,100,\"Layer7 wrong, \"\"so\nit says\"\"\",[::1]:81,,\n\
        b,srv1,0,0,1,5,MAINT (via a/b),100,,10.0.0.3:80,,\n\
        b,srv2,0,0,0,5,DRAIN,1,,,,\n\n";

    fn load(name: &str, address: Option<&str>, gets_new: bool, sessions: u64) -> ServerLoad {
        let address = address.map(|address| address.parse().unwrap());
        ServerLoad { name: name.to_owned(), address, gets_new, sessions }
    }

    #[test]
    fn what_servers_have_to_do_is_read() {
        let all = [
            load("10.0.0.1_80", Some("10.0.0.1:80"), false, 5),
            load("--1_81", Some("[::1]:81"), true, 0),
            load("srv1", Some("10.0.0.3:80"), false, 1),
            load("srv2", None, false, 0),
        ];
        assert_eq!(parse_servers(STAT, |_, _| true).unwrap(), all);
        let some = parse_servers(STAT, |name, address| name == "srv2" || address == "[::1]:81".parse().ok());
        assert_eq!(some.unwrap(), [all[1].clone(), all[3].clone()]);
        let none = "# pxname,svname,qcur,scur,status,weight,addr,\n\n";
        assert_eq!(parse_servers(none, |_, _| true), Some(vec![]));
    }

    #[test]
    fn a_reply_that_is_not_understood_is_none() {
        let bad = [
            String::new(),
            "Can't find the target PID matching the prefix '@!9'\n\n".to_owned(),
            // Without rights HAProxy tells no addresses.
            STAT.replace(",addr,", ",other,"),
            STAT.replace("2,2,3,5", "2,2,x,5"),
            STAT.replace("UP,0", "UP,"),
            STAT.replace("b,srv1,0,0,1,5,MAINT (via a/b),100,,10.0.0.3:80,,", "b,srv1,0"),
        ];
        for reply in bad {
            assert_eq!(parse_servers(&reply, |_, _| true), None, "{reply}");
        }
    }
}
