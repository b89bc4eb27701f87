//! A picture told piece by piece, in order: whoever reads it slowly holds the picture, which is shared, and no text of it.

use std::sync::Arc;

use registry::ServiceName;

use crate::report::{Index, InstanceReport, Outline, ServiceHead, Stats, Status};
use crate::view::View;

/// How many instances a piece has at most.
const PIECE: usize = 100;

/// One piece.
#[derive(Debug)]
pub(super) enum Piece {
    /// A service begins.
    Service(Box<ServiceHead>),
    /// Instances of the service that began last.
    Instances(Vec<InstanceReport>),
    /// That service ends.
    End,
}

/// What is wanted of a picture. A service that has no wanted instance is left out where instances are chosen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Filter {
    /// Only this service.
    pub(super) service: Option<ServiceName>,
    /// Only instances with this status.
    pub(super) status: Option<Status>,
    /// Only instances with this tag.
    pub(super) tag: Option<String>,
}

impl Filter {
    /// Reads the query of a request.
    ///
    /// # Errors
    /// A name or a value that is not known, in words.
    pub(super) fn parse(query: &str) -> Result<Self, String> {
        let mut filter = Self::default();
        for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
            match name.as_ref() {
                "service" => filter.service = Some(value.parse().map_err(|error| format!("service: {error}"))?),
                "status" => {
                    let known = Status::ALL.into_iter().find(|status| status.as_str() == value);
                    let words = "status: up, draining, suspect and refused are known";
                    filter.status = Some(known.filter(|status| *status != Status::Empty).ok_or(words)?);
                }
                "tag" => filter.tag = Some(value.into_owned()),
                _ => return Err("service, status and tag are known parameters, and no others".to_owned()),
            }
        }
        Ok(filter)
    }

    fn takes(&self, instance: &InstanceReport) -> bool {
        self.status.is_none_or(|status| instance.status == status)
            && self.tag.as_ref().is_none_or(|tag| instance.tags.contains(tag))
    }

    fn chooses(&self) -> bool {
        self.status.is_some() || self.tag.is_some()
    }
}

/// The walk along a picture.
#[derive(Debug)]
pub(super) struct Walk {
    view: Arc<View>,
    stats: Option<Arc<Stats>>,
    index: Index,
    filter: Filter,
    /// The service that is told, and how many of its instances were.
    service: Option<ServiceName>,
    told: usize,
    /// The service that is told has begun.
    begun: bool,
}

impl Walk {
    pub(super) fn new(view: Arc<View>, stats: Option<Arc<Stats>>, filter: Filter) -> Self {
        let index = Index::new(&view);
        Self { view, stats, index, filter, service: None, told: 0, begun: false }
    }
}

impl Iterator for Walk {
    type Item = Piece;

    fn next(&mut self) -> Option<Piece> {
        let outline = Outline::new(&self.view, &self.index);
        loop {
            if !self.begun {
                let name = match &self.filter.service {
                    Some(name) if self.service.is_none() => name,
                    Some(_) => return None,
                    None => outline.next_name(self.service.as_ref())?,
                };
                let name = name.clone();
                let head = outline.head(&name);
                self.service = Some(name);
                self.told = 0;
                if let Some(head) = head.filter(|_| !self.filter.chooses() || self.has_wanted(outline)) {
                    self.begun = true;
                    return Some(Piece::Service(Box::new(head)));
                }
                continue;
            }
            let name = self.service.as_ref()?;
            let service = outline.find(name)?;
            if self.told > service.instances.len() {
                self.begun = false;
                return Some(Piece::End);
            }
            let refused = outline.refused(name);
            let until = service.instances.len().min(self.told + PIECE);
            let stats = self.stats.as_deref();
            let some = service.instances[self.told..until].iter();
            let mut some: Vec<_> = some.map(|instance| outline.instance(service, instance, refused, stats)).collect();
            self.told = until;
            if until == service.instances.len() {
                some.extend(outline.refused_keys(service));
                self.told += 1;
            }
            some.retain(|instance| self.filter.takes(instance));
            if !some.is_empty() {
                return Some(Piece::Instances(some));
            }
        }
    }
}

impl Walk {
    fn has_wanted(&self, outline: Outline<'_>) -> bool {
        let Some((name, service)) = self.service.as_ref().and_then(|name| Some((name, outline.find(name)?))) else {
            return false;
        };
        let refused = outline.refused(name);
        let mut served = service.instances.iter();
        served.any(|instance| self.filter.takes(&outline.instance(service, instance, refused, None)))
            || outline.refused_keys(service).iter().any(|instance| self.filter.takes(instance))
    }
}
