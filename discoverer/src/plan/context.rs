//! What a section says about all of its servers: `default-server`, the balance algorithm and the like. Pure.

use super::reason::Reason;
use super::text::{Parsed, Section};
use super::words::{Word, first_word, words};

/// The weight of a server for which nothing says one (configuration manual, section 5.2, "weight").
const DEFAULT_WEIGHT: u16 = 1;

/// What holds for the servers of one section, with what its `defaults` sections say.
#[derive(Debug)]
pub(super) struct Context<'t> {
    /// The backend's name.
    pub(super) backend: String,
    default_servers: Vec<DefaultServer<'t>>,
    /// A server's cookie is computed, which `add server` forgets.
    pub(super) dynamic_cookie: bool,
    /// Checks run a program.
    pub(super) external_check: bool,
}

#[derive(Debug)]
struct DefaultServer<'t> {
    place: usize,
    words: Vec<Word<'t>>,
}

impl<'t> Context<'t> {
    /// Reads what holds for the servers of a backend; the reason where they cannot change at run time.
    pub(super) fn new(parsed: &'t Parsed, index: usize) -> Result<Self, Reason> {
        let (context, proxy) = Self::read_whole(parsed, index)?;
        proxy.check(&context.backend)?;
        Ok(context)
    }

    /// Reads what holds for the servers of a backend, whether they can change at run time or not.
    pub(super) fn of_any(parsed: &'t Parsed, index: usize) -> Result<Self, Reason> {
        Ok(Self::read_whole(parsed, index)?.0)
    }

    fn read_whole(parsed: &'t Parsed, index: usize) -> Result<(Self, ProxySettings<'t>), Reason> {
        let section = &parsed.sections()[index];
        let title = parsed.title(section);
        let Ok(backend) = parsed.name(section) else {
            return Err(Reason::Unclear { section: title });
        };
        let mut context = Self { backend, default_servers: Vec::new(), dynamic_cookie: false, external_check: false };
        let mut proxy = ProxySettings::default();
        for section in parsed.lineage(index) {
            if section.unclear {
                return Err(Reason::Unclear { section: parsed.title(section) });
            }
            context.read(parsed, section, &mut proxy)?;
        }
        Ok((context, proxy))
    }

    /// The words of the `default-server` lines that stand before a place, and how many lines that are. They hold for
    /// the servers behind them.
    pub(super) fn defaults_at(&self, place: usize) -> (impl Iterator<Item = &Word<'t>>, usize) {
        let count = self.default_servers.partition_point(|line| line.place < place);
        (self.default_servers[..count].iter().flat_map(|line| &line.words), count)
    }

    /// The weight of a server that stands at a place and says none: what `default-server` says, else HAProxy's own. None
    /// where that is no number.
    pub(super) fn default_weight(&self, place: usize) -> Option<u16> {
        let mut words = self.defaults_at(place).0;
        let mut weight = Some(DEFAULT_WEIGHT);
        while let Some(word) = words.next() {
            if word == "weight" {
                weight = words.next().and_then(|word| word.parse().ok());
            }
        }
        weight
    }

    /// How many `default-server` lines there are.
    pub(super) fn all_defaults(&self) -> usize {
        self.default_servers.len()
    }

    fn read(&mut self, parsed: &'t Parsed, section: &Section, proxy: &mut ProxySettings<'t>) -> Result<(), Reason> {
        for (place, line) in parsed.settings(section) {
            if !READ.contains(&first_word(line).as_ref()) {
                continue;
            }
            let line = words(line).map_err(|_| Reason::Unclear { section: parsed.title(section) })?;
            let text: Vec<&str> = line.iter().map(AsRef::as_ref).collect();
            match text.as_slice() {
                ["default-server", ..] => {
                    self.default_servers.push(DefaultServer { place, words: line.into_iter().skip(1).collect() });
                }
                ["balance", ..] => proxy.balance = line.into_iter().nth(1),
                ["hash-type", ..] => proxy.hash_type = line.into_iter().nth(1),
                ["mode", ..] => proxy.mode = line.into_iter().nth(1),
                ["disabled", ..] => proxy.disabled = true,
                ["enabled", ..] => proxy.disabled = false,
                ["cookie", rest @ ..] => self.dynamic_cookie = rest.contains(&"dynamic"),
                ["option", "external-check", ..] => self.external_check = true,
                ["no", "option", "external-check", ..] => self.external_check = false,
                _ => {}
            }
        }
        Ok(())
    }
}

/// The first words of the lines that matter here.
const READ: &[&str] =
    &["default-server", "balance", "hash-type", "mode", "disabled", "enabled", "cookie", "option", "no"];

#[derive(Default)]
struct ProxySettings<'t> {
    balance: Option<Word<'t>>,
    hash_type: Option<Word<'t>>,
    mode: Option<Word<'t>>,
    disabled: bool,
}

impl ProxySettings<'_> {
    /// Whether HAProxy changes the servers of such a proxy at run time (management manual, "add server"; measured).
    fn check(&self, backend: &str) -> Result<(), Reason> {
        let refused = |setting: String| Err(Reason::Proxy { backend: backend.to_owned(), setting });
        if self.disabled {
            return refused("disabled".to_owned());
        }
        if let Some(mode) = self.mode.as_deref()
            && !matches!(mode, "http" | "tcp")
        {
            return refused(format!("mode {mode}"));
        }
        let Some(balance) = self.balance.as_deref() else {
            return Ok(());
        };
        let algorithm = balance.split('(').next().unwrap_or_default();
        match algorithm {
            "roundrobin" | "leastconn" | "first" | "random" => Ok(()),
            "source" | "uri" | "url_param" | "hdr" | "hash" | "rdp-cookie"
                if self.hash_type.as_deref() == Some("consistent") =>
            {
                Ok(())
            }
            "source" | "uri" | "url_param" | "hdr" | "hash" | "rdp-cookie" => {
                refused(format!("balance {algorithm} without hash-type consistent"))
            }
            _ => refused(format!("balance {algorithm}")),
        }
    }
}
