//! The discoverer's way from an event of etcd's to what HAProxy is told, in this process and step by step: what of its cost grows with
//! the number of instances.

use std::collections::BTreeMap;
use std::fs;
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clap::ValueEnum;
use discoverer::catalog::{Catalog, Options, Step};
use discoverer::plan::{self, Parsed, Plan, Version};
use discoverer::render::{Surroundings, Templates};
use discoverer::share::Share;
use registry::{Cause, Entry, Event, Listing, Position};

use crate::Amount;
use crate::plot::{Curve, Plot};
use crate::stats::{Measured, Row, Times};
use crate::world::{SERVICE, keys, record};

const SIZES: [usize; 3] = [100, 1000, 10_000];
const PREFIX: &str = "service";
/// A server that is not among the others.
const NEW: &str = "127.200.0.1:8000";
/// The version whose runtime API is spoken.
const VERSION: Version = Version { major: 2, minor: 6 };

/// A step of the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// One instance comes: the catalog takes the event, its line is rendered, and becomes a command. All that stands before HAProxy
    /// is told.
    Change,
    /// The catalog takes a whole listing.
    List,
    /// The whole text is rendered for the first time.
    Render,
    /// The whole text is rendered again after one instance came.
    RenderAgain,
    /// A text is read into sections.
    Parse,
    /// The difference of two texts, one server apart.
    Plan,
}

impl Part {
    fn name(self) -> &'static str {
        match self {
            Self::Change => "one instance comes: event -> command",
            Self::List => "a listing becomes services",
            Self::Render => "the whole text, for the first time",
            Self::RenderAgain => "the whole text, after one change",
            Self::Parse => "a text is read",
            Self::Plan => "the difference of two texts",
        }
    }
}

/// What the steps work on.
struct Bed {
    catalog: Catalog,
    listing: Vec<Entry>,
    templates: Templates,
    surroundings: Surroundings,
}

impl Bed {
    fn new(size: usize) -> anyhow::Result<Self> {
        let entries = keys(PREFIX, size, 8000, "").into_iter();
        let listing = entries.map(|(key, value)| Entry::new(format!("/{key}"), value)).collect();
        let options = Options {
            prefix: PREFIX.parse()?,
            share: Share::default(),
            listen_ports: Vec::new(),
            forget_after: Duration::from_secs(3600),
            suspect_for: Duration::from_secs(60),
            least_life: Duration::from_secs(20),
        };
        let mut bed = Self {
            catalog: Catalog::new(options),
            listing,
            templates: templates()?,
            surroundings: Surroundings::default(),
        };
        bed.list();
        ensure!(bed.catalog.services().values().map(|service| service.instances.len()).sum::<usize>() == size);
        Ok(bed)
    }

    fn list(&mut self) {
        let listing = Listing { entries: self.listing.clone(), directories: None, position: Position::new(None, 1) };
        self.catalog.list(listing, Instant::now());
    }

    fn text(&self) -> anyhow::Result<String> {
        Ok(self.templates.render(self.catalog.services(), &self.surroundings)?)
    }

    fn come(&mut self) -> anyhow::Result<Step> {
        let entry = Entry::new(format!("/{PREFIX}/{SERVICE}/{NEW}"), record(999_999, ""));
        self.catalog.apply(Event::Put(entry), Instant::now()).steps.pop().context("it is no step")
    }

    fn go(&mut self) {
        let path = format!("/{PREFIX}/{SERVICE}/{NEW}");
        self.catalog.apply(Event::Removed { path, cause: Cause::Deleted }, Instant::now());
    }

    /// Does a step once, all that comes before it being done already. What is counted or timed is [`counted`].
    fn once(&mut self, part: Part) -> anyhow::Result<Duration> {
        let time = match part {
            Part::Change => {
                let running = Parsed::new(self.text()?);
                let (change, time) = counted(|| {
                    let step = self.come()?;
                    let line = self.templates.render_server(&step.settings, &step.instance, &self.surroundings);
                    let line = line.context("the templates make no line by itself")?;
                    anyhow::Ok(plan::addition(&running, SERVICE, &line, Some(VERSION))?)
                });
                change?;
                time
            }
            Part::List => counted(|| self.list()).1,
            Part::Render => {
                self.templates = templates()?;
                let (text, time) = counted(|| self.text());
                text?;
                time
            }
            Part::RenderAgain => {
                self.text()?;
                self.come()?;
                let (text, time) = counted(|| self.text());
                text?;
                time
            }
            Part::Parse => {
                let text: Arc<str> = self.text()?.into();
                counted(|| Parsed::new(text)).1
            }
            Part::Plan => {
                let before = Parsed::new(self.text()?);
                self.come()?;
                let after = Parsed::new(self.text()?);
                let (plan, time) = counted(|| plan::between(&before, &after, Some(VERSION)));
                ensure!(matches!(plan, Plan::Runtime(_)), "{plan:?}");
                time
            }
        };
        self.go();
        Ok(time)
    }
}

/// The templates that the project ships.
fn templates() -> anyhow::Result<Templates> {
    let main = e2e::default_template();
    let mut sources = BTreeMap::new();
    for file in fs::read_dir(main.parent().context("the templates' directory")?)? {
        let path = file?.path();
        let name = path.file_name().and_then(|name| name.to_str()).context("a template's name")?.to_owned();
        sources.insert(name, fs::read_to_string(&path)?);
    }
    let name = main.file_name().and_then(|name| name.to_str()).context("the template's name")?;
    Ok(Templates::parse(name, &sources)?)
}

/// What valgrind counts: `--toggle-collect='*counted*'`.
#[inline(never)]
fn counted<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let start = Instant::now();
    let done = black_box(work());
    (done, start.elapsed())
}

/// Does a step once, for valgrind.
pub(crate) fn once(part: Part, size: usize) -> anyhow::Result<()> {
    Bed::new(size)?.once(part).map(drop)
}

/// Each step's time at each size.
pub(crate) fn measure(amount: &Amount) -> anyhow::Result<Measured> {
    let (mut rows, mut curves) = (Vec::new(), Vec::new());
    for part in Part::value_variants() {
        let (mut shown, mut points) = (Vec::new(), Vec::new());
        for size in amount.sizes(&SIZES) {
            let mut bed = Bed::new(size)?;
            bed.once(*part)?;
            let mut times = Times::default();
            for _ in 0..amount.rounds {
                times.push(bed.once(*part)?);
            }
            shown.push(format!("{:.3}", times.median()));
            #[allow(clippy::cast_precision_loss)]
            points.push((size as f64, times.median()));
            eprint!("\r{}, {size} instances   ", part.name());
        }
        eprintln!();
        curves.push(Curve { name: part.name().to_owned(), points });
        let sizes = amount.sizes(&SIZES).iter().map(ToString::to_string).collect::<Vec<_>>().join(" / ");
        rows.push(Row::new(&format!("{}, {sizes} instances", part.name()), "", format!("{} ms", shown.join(" / "))));
    }
    // What happens at each change, and what it would be to begin anew.
    curves.retain(|curve| {
        [Part::Change, Part::RenderAgain, Part::Plan, Part::List].map(Part::name).contains(&curve.name.as_str())
    });
    let plot = Plot {
        file: "steps",
        title: "What a step costs by the number of instances".to_owned(),
        across: "instances",
        up: "milliseconds",
        curves,
    };
    Ok(Measured { rows, plots: vec![plot] })
}
