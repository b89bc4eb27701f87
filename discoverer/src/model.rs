//! Services and instances as templates see them. Pure: no I/O.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use registry::settings::{Balance, HostNames, Mode, Proto, Span, UrlPath};
use registry::{InstanceAddress, Record, ServiceName};
use serde::ser::SerializeStruct as _;
use serde::{Serialize, Serializer};

/// Everything known at one moment, sorted by the services' names. Cheap to clone.
pub type Services = BTreeMap<ServiceName, Arc<Service>>;

/// A service and its settings.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Service {
    /// Its name, which is its backend's name too.
    #[serde(serialize_with = "as_text")]
    pub name: ServiceName,
    /// What HAProxy takes it for.
    pub mode: Mode,
    /// The host names it answers to, joined by commas; none: any.
    pub host: Option<HostNames>,
    /// The path its requests begin with; none: any.
    pub path: Option<UrlPath>,
    /// The port on which HAProxy takes connections for a TCP service.
    pub listen: Option<u16>,
    /// How HAProxy chooses between its instances.
    pub balance: Balance,
    /// The path that HAProxy's own check asks; none: it only connects.
    pub check: Option<UrlPath>,
    /// What its instances speak.
    pub proto: Proto,
    /// Whether a client stays with its instance.
    pub sticky: bool,
    /// The most connections for one instance.
    pub maxconn: Option<u32>,
    /// How long a new instance takes to get its full share.
    pub slowstart: Option<Span>,
    /// Whether it lies right under the prefix (the flat layout).
    pub flat: bool,
    /// The tags of all its instances, sorted.
    pub tags: Vec<String>,
    /// The attributes of its instances; where they disagree the newest container's.
    pub attributes: BTreeMap<String, String>,
    /// Its instances, sorted by address.
    pub instances: Vec<Arc<Instance>>,
}

impl Service {
    /// The service without its instances.
    #[must_use]
    pub fn settings(&self) -> Self {
        Self {
            name: self.name.clone(),
            mode: self.mode,
            host: self.host.clone(),
            path: self.path.clone(),
            listen: self.listen,
            balance: self.balance,
            check: self.check.clone(),
            proto: self.proto,
            sticky: self.sticky,
            maxconn: self.maxconn,
            slowstart: self.slowstart.clone(),
            flat: self.flat,
            tags: self.tags.clone(),
            attributes: self.attributes.clone(),
            instances: Vec::new(),
        }
    }
}

/// One instance of a service.
#[derive(Debug, Clone, PartialEq)]
pub struct Instance {
    /// A name from address and port, fit for HAProxy: with a server-state file the saved address of a name wins
    /// over the file's, so a name must never change its address.
    pub server: String,
    /// The host's address.
    pub address: IpAddr,
    /// The port there.
    pub port: u16,
    /// 0 to 256, of all instances' weights.
    pub weight: u16,
    /// It finishes what it has and gets nothing new.
    pub draining: bool,
    /// Its key has expired, but HAProxy's own check still reaches it.
    pub suspect: bool,
    /// What else is known of it; templates get `id`, `name`, `host` (each the empty text where it is not known), `tags` and
    /// `attributes` of it.
    pub record: Arc<Record>,
}

impl Serialize for Instance {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Record { id, name, host, tags, attributes, .. } = self.record.as_ref();
        let mut fields = serializer.serialize_struct("Instance", 11)?;
        fields.serialize_field("server", &self.server)?;
        fields.serialize_field("address", &self.address)?;
        fields.serialize_field("port", &self.port)?;
        fields.serialize_field("weight", &self.weight)?;
        fields.serialize_field("draining", &self.draining)?;
        fields.serialize_field("suspect", &self.suspect)?;
        fields.serialize_field("id", id.as_deref().unwrap_or_default())?;
        fields.serialize_field("name", name.as_deref().unwrap_or_default())?;
        fields.serialize_field("host", host.as_deref().unwrap_or_default())?;
        fields.serialize_field("tags", tags)?;
        fields.serialize_field("attributes", attributes)?;
        fields.end()
    }
}

/// The name of the server for an address: `10.0.0.1:8000` is `10.0.0.1_8000`, `[::1]:8000` is `--1_8000`.
pub fn server_name(address: InstanceAddress) -> String {
    format!("{}_{}", address.ip().to_string().replace(':', "-"), address.port())
}

fn as_text<S: Serializer>(name: &ServiceName, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(name.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_name_says_its_address_and_fits_haproxy() {
        assert_eq!(server_name("10.0.0.1:8000".parse().unwrap()), "10.0.0.1_8000");
        assert_eq!(server_name("[2001:db8::1]:80".parse().unwrap()), "2001-db8--1_80");
    }
}
