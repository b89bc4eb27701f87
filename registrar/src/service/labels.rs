//! What a container says of itself: its labels and its environment in registrator's scheme. Pure.
//!
//! `SERVICE_X` holds for all ports, `SERVICE_<port>_X` for one of the container's ports. What holds for one port wins
//! over what holds for all, a label over a variable; an empty value counts as absent and hides what it wins over.

use std::collections::{BTreeMap, BTreeSet};

use bollard::models::ContainerInspectResponse;

use super::alias::Aliases;
use super::refusal::{Reason, Refusal};
use super::slip;

/// One label or variable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Setting {
    /// Its name as it was written.
    pub(super) label: String,
    /// Its value, without blanks around it.
    pub(super) value: String,
    /// Of two settings that are at odds, the one with the lower rank wins.
    pub(super) rank: Rank,
}

/// Where a setting was said, the strongest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rank {
    PortLabel,
    PortVariable,
    Label,
    Variable,
    Alias,
}

impl Setting {
    /// Whether it is said of one port and no other.
    pub(super) fn is_of_one_port(&self) -> bool {
        matches!(self.rank, Rank::PortLabel | Rank::PortVariable | Rank::Alias)
    }
}

/// Everything that a container says of itself.
#[derive(Debug, Default)]
pub(super) struct Labels {
    /// By the port it is for (`None`: all) and its name in lower case without `SERVICE_`.
    settings: BTreeMap<(Option<u16>, String), Setting>,
    /// Labels and variables as they are, labels over variables, for what others' schemes say.
    pub(super) all: BTreeMap<String, Setting>,
}

/// What holds for one port.
#[derive(Debug, Clone, Copy)]
pub(super) struct PortLabels<'a> {
    pub(super) port: u16,
    labels: &'a Labels,
    aliases: &'a Aliases,
}

impl Labels {
    /// Reads labels and environment. Labels that mean a port which is none are refused.
    pub(super) fn of(container: &ContainerInspectResponse) -> (Self, Vec<Refusal>) {
        let config = container.config.as_ref();
        let variables = config.and_then(|config| config.env.as_deref()).unwrap_or_default();
        // Sorted, so that of two that differ in case only the same one wins each time.
        let variables: BTreeMap<&str, &str> =
            variables.iter().filter_map(|variable| variable.split_once('=')).collect();
        let labels = config.and_then(|config| config.labels.as_ref()).into_iter().flatten();
        let labels: BTreeMap<&str, &str> = labels.map(|(label, value)| (label.as_str(), value.as_str())).collect();
        let mut read = Self::default();
        let mut refusals = Vec::new();
        let variables = variables.into_iter().map(|pair| (pair, (Rank::PortVariable, Rank::Variable)));
        let labels = labels.into_iter().map(|pair| (pair, (Rank::PortLabel, Rank::Label)));
        for ((label, value), (rank_of_port, rank)) in variables.chain(labels) {
            let mut setting = Setting { label: label.to_owned(), value: value.trim().to_owned(), rank };
            read.all.insert(label.to_owned(), setting.clone());
            let Some(name) = label.strip_prefix("SERVICE_").filter(|name| !name.is_empty()) else { continue };
            let name = name.to_ascii_lowercase();
            let (port, name) = match name.split_once('_') {
                Some((number, name)) if number.bytes().all(|b| b.is_ascii_digit()) && !number.is_empty() => {
                    match number.parse() {
                        Ok(port) if port != 0 => (Some(port), name.to_owned()),
                        _ => {
                            refusals.push(Refusal::of_setting(&setting, Reason::PortNumber));
                            continue;
                        }
                    }
                }
                _ => (None, name),
            };
            if port.is_some() {
                setting.rank = rank_of_port;
            }
            read.settings.insert((port, name), setting);
        }
        (read, refusals)
    }

    /// What holds for a port.
    pub(super) fn for_port<'a>(&'a self, port: u16, aliases: &'a Aliases) -> PortLabels<'a> {
        PortLabels { port, labels: self, aliases }
    }

    /// The ports that labels are for, each with one of them.
    pub(super) fn ports(&self) -> BTreeMap<u16, &Setting> {
        self.settings.iter().rev().filter_map(|((port, _), setting)| Some(((*port)?, setting))).collect()
    }

    /// Whether a label asks that the container, or one of its ports, be registered.
    pub(super) fn ask(&self) -> bool {
        self.settings.iter().any(|((_, name), setting)| name == "name" && !setting.value.is_empty())
    }

    /// What holds for all ports.
    pub(super) fn general(&self, name: &str) -> Option<&Setting> {
        self.settings.get(&(None, name.to_owned())).filter(|setting| !setting.value.is_empty())
    }

    /// The label or variable by which a port is left out.
    pub(super) fn ignored(&self, port: u16) -> Option<&Setting> {
        let of_port = self.settings.get(&(Some(port), "ignore".to_owned()));
        of_port.filter(|setting| !setting.value.is_empty())
    }

    /// Labels that are no settings, and called almost like one; also variables, of a container that is meant to be registered: in
    /// those of any other its image speaks to its application.
    pub(super) fn slips(&self, is_meant: bool) -> impl Iterator<Item = Refusal> {
        let is_label = |setting: &Setting| matches!(setting.rank, Rank::Label | Rank::PortLabel);
        let settings = self.settings.iter().filter(move |(_, setting)| is_meant || is_label(setting));
        settings.filter(|(_, setting)| !setting.value.is_empty()).filter_map(|((_, name), setting)| {
            // The name is the end of the label in lower case: as long, in bytes.
            let before = setting.label.get(..setting.label.len() - name.len())?;
            let meant = format!("{before}{}", slip::meant(name)?.to_ascii_uppercase());
            Some(Refusal::of_setting(setting, Reason::Slip(meant)))
        })
    }

    /// A label or variable of another scheme.
    pub(super) fn raw(&self, label: &str) -> Option<&Setting> {
        self.all.get(label).filter(|setting| !setting.value.is_empty())
    }
}

impl<'a> PortLabels<'a> {
    /// What holds for this port.
    ///
    /// # Errors
    /// What is wrong with the label of another scheme that would say it.
    pub(super) fn get(&self, name: &str) -> Result<Option<&'a Setting>, Refusal> {
        match self.own(name).or_else(|| self.labels.settings.get(&(None, name.to_owned()))) {
            Some(setting) => Ok(Some(setting).filter(|setting| !setting.value.is_empty())),
            None => self.aliases.get(self.port, name),
        }
    }

    /// What was said for this port and no other.
    pub(super) fn own(&self, name: &str) -> Option<&'a Setting> {
        self.labels.settings.get(&(Some(self.port), name.to_owned()))
    }

    /// The names of all that may hold for this port.
    pub(super) fn names(&self) -> BTreeSet<&'a str> {
        let of_labels = self.labels.settings.keys().filter(|(port, _)| port.is_none_or(|port| port == self.port));
        let of_aliases = self.aliases.names(self.port).map(|name| -> &'a str { name });
        of_labels.map(|(_, name)| name.as_str()).chain(of_aliases).collect()
    }

    /// Whether a label asks that this port be registered.
    pub(super) fn asks(&self) -> bool {
        let name = self.own("name").or_else(|| self.labels.general("name"));
        name.is_some_and(|setting| !setting.value.is_empty()) || self.aliases.ask_for(self.port)
    }
}
