//! From services to the text of haproxy.cfg, through the user's Tera templates. Pure: the templates come in as
//! text, and the same input gives the same bytes.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use observe::escape::is_unsafe;
use registry::ServiceName;
use registry::settings::{HostNames, Mode, UrlPath};
use serde::Serialize;
use tera::{Context, ErrorKind, Tera, Value};

use crate::model::{Instance, Service, Services};
use crate::options::{ReadOptions, UnreadOption};

/// The partial that holds one server's line.
const SERVER_PARTIAL: &str = "server.tera";

/// The longest text that is rendered, in bytes: the servers' lines of 100,000 instances take some 15 MB.
const TEXT_LIMIT: usize = 64 << 20;

/// Why a template did not give a text: one line, with the template's name and line where Tera knows them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TemplateError(String);

impl TemplateError {
    /// An error of what surrounds the template, such as a file that cannot be read.
    pub fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

impl From<tera::Error> for TemplateError {
    fn from(error: tera::Error) -> Self {
        let text = match error.kind() {
            ErrorKind::SyntaxError(report) | ErrorKind::RenderingError(report) => {
                let span = report.span();
                format!(
                    "{} line {}, column {}: {}",
                    report.filename(),
                    span.start_line,
                    span.start_col + 1,
                    report.message()
                )
            }
            other => other.to_string(),
        };
        // The report of a nested cause spreads over lines; a log wants one.
        Self(text.split_whitespace().collect::<Vec<_>>().join(" "))
    }
}

/// What of HAProxy itself a template may need.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct HaproxyContext {
    /// The version, such as `2.6.12`; none where it is not known.
    pub version: Option<String>,
    /// Where the stats socket should be.
    pub runtime_socket: Option<PathBuf>,
    /// Where the servers' state is kept over a reload.
    pub state_file: Option<PathBuf>,
    /// Where HAProxy's master writes its pid.
    pub pid_file: Option<PathBuf>,
}

/// What stays the same from one rendering to the next.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// HAProxy's part.
    pub haproxy: HaproxyContext,
    /// What `--set` gave. It is the operator's own text and is written as it is.
    pub options: BTreeMap<String, String>,
}

/// The templates of one directory, parsed.
#[derive(Debug)]
pub struct Templates {
    tera: Tera,
    main: String,
    /// One of them is the partial that makes a server's line.
    has_partial: bool,
    /// The templates go through instances themselves, so that these have to be in the context.
    loops: bool,
    /// The templates print `service.servers`, so that the partial has to make each line by itself.
    prints_lines: bool,
    options: ReadOptions,
    lines: RefCell<Lines>,
}

/// The servers' lines of the last rendering. A change of one instance costs the rendering of one line.
#[derive(Debug, Default)]
struct Lines {
    surroundings: Surroundings,
    services: HashMap<ServiceName, ServiceLines>,
}

#[derive(Debug)]
struct ServiceLines {
    settings: Service,
    /// Each with the instance it was made of, sorted by address as the instances of a service are.
    lines: Vec<(Arc<Instance>, Box<str>)>,
}

impl Templates {
    /// Parses the texts, by name. `main` names the one to render, the others are its partials.
    pub fn parse(main: &str, sources: &BTreeMap<String, String>) -> Result<Self, TemplateError> {
        let mut tera = Tera::new();
        tera.autoescape_on([""]);
        tera.set_escape_fn(escape);
        tera.add_raw_templates(sources.iter().map(|(name, text)| (name.as_str(), text.as_str())))?;
        let texts: Vec<String> = sources.values().map(|text| without_comments(text)).collect();
        let mentions = |word: &str| texts.iter().any(|text| text.contains(word));
        let (loops, prints_lines) = (mentions("instances"), mentions(".servers"));
        let has_partial = sources.contains_key(SERVER_PARTIAL);
        let options = ReadOptions::of(texts.iter().map(String::as_str));
        Ok(Self { tera, main: main.to_owned(), has_partial, loops, prints_lines, options, lines: RefCell::default() })
    }

    /// Those of the options (`--set`) that none of these templates reads.
    pub fn unread<'o>(&self, options: impl IntoIterator<Item = &'o str>) -> Vec<UnreadOption> {
        self.options.unread(options)
    }

    /// The line of one server, from the partial that holds it and the service's settings. None where the templates do not
    /// print the lines that this partial makes, or go through the instances themselves, so that they may leave some out;
    /// and where it needs more than the settings, an instance, `haproxy` and `options`.
    pub fn render_server(
        &self,
        settings: &Service,
        instance: &Instance,
        surroundings: &Surroundings,
    ) -> Option<String> {
        if !self.has_partial || !self.prints_lines || self.loops {
            return None;
        }
        let mut context = surroundings_context(surroundings);
        context.insert("service", settings);
        self.server_line(&mut context, instance).ok()
    }

    /// The whole configuration, with a line feed at its end, which HAProxy requires.
    pub fn render(&self, services: &Services, surroundings: &Surroundings) -> Result<String, TemplateError> {
        let mut context = surroundings_context(surroundings);
        let wanted = surroundings.options.get("default_service").map(String::as_str).filter(|name| !name.is_empty());
        context.insert("default_service", &default_service(services, wanted));
        context.insert("routes", &routes(services));
        let mut lines = self.lines.borrow_mut();
        if lines.surroundings != *surroundings {
            *lines = Lines { surroundings: surroundings.clone(), services: HashMap::new() };
        }
        lines.services.retain(|name, _| services.contains_key(name));
        let values = services.values().map(|service| self.service_value(service, &mut lines, surroundings));
        context.insert_value("services", Value::from(values.collect::<Result<Vec<_>, _>>()?));
        let mut text = Bounded::default();
        if let Err(error) = self.tera.render_to(&self.main, &context, &mut text) {
            // Tera does not hand on what is said of a text that cannot be written.
            let words = || {
                format!("the configuration has more than {TEXT_LIMIT} bytes; is a loop in the template without end?")
            };
            return Err(if text.is_over { TemplateError(words()) } else { error.into() });
        }
        let mut text = String::from_utf8(text.text).map_err(|error| TemplateError::new(error.to_string()))?;
        if !text.ends_with('\n') {
            text.push('\n');
        }
        Ok(text)
    }

    /// A service as templates see it: its settings, `servers`, and its instances where a template goes through them.
    fn service_value(
        &self,
        service: &Service,
        lines: &mut Lines,
        surroundings: &Surroundings,
    ) -> Result<Value, TemplateError> {
        let value =
            if self.loops { Value::from_serializable(service) } else { Value::from_serializable(&service.settings()) };
        let mut fields: BTreeMap<_, _> = value.into_map().unwrap_or_default().into_iter().collect();
        if self.prints_lines && self.has_partial {
            let text = self.server_lines(service, lines, surroundings)?;
            fields.insert("servers".into(), Value::safe_string(&text));
        }
        Ok(Value::from(fields))
    }

    /// The lines of all instances of a service.
    fn server_lines(
        &self,
        service: &Service,
        lines: &mut Lines,
        surroundings: &Surroundings,
    ) -> Result<String, TemplateError> {
        let settings = service.settings();
        let known = lines.services.remove(&service.name).filter(|known| known.settings == settings);
        let mut known = known.map(|known| known.lines).unwrap_or_default().into_iter().peekable();
        let mut now = Vec::with_capacity(service.instances.len());
        let mut context = None;
        let mut text = String::new();
        for instance in &service.instances {
            let is_before =
                |(then, _): &(Arc<Instance>, _)| (then.address, then.port) < (instance.address, instance.port);
            while known.next_if(is_before).is_some() {}
            let is_same = |(then, _): &(Arc<Instance>, _)| Arc::ptr_eq(then, instance) || then == instance;
            let line = match known.next_if(is_same) {
                Some((_, line)) => line,
                None => {
                    let context = context.get_or_insert_with(|| {
                        let mut context = surroundings_context(surroundings);
                        context.insert("service", &settings);
                        context
                    });
                    self.server_line(context, instance)?.into()
                }
            };
            text.push_str("    ");
            text.push_str(&line);
            text.push('\n');
            now.push((Arc::clone(instance), line));
        }
        lines.services.insert(service.name.clone(), ServiceLines { settings, lines: now });
        Ok(text)
    }

    /// One line, in a context that holds everything else.
    fn server_line(&self, context: &mut Context, instance: &Instance) -> Result<String, TemplateError> {
        context.insert("instance", instance);
        let line = self.tera.render(SERVER_PARTIAL, context)?;
        Ok(line.trim().to_owned())
    }
}

/// A text that ends at [`TEXT_LIMIT`].
#[derive(Default)]
struct Bounded {
    text: Vec<u8>,
    is_over: bool,
}

impl Write for Bounded {
    fn write(&mut self, part: &[u8]) -> std::io::Result<usize> {
        self.is_over |= self.text.len() + part.len() > TEXT_LIMIT;
        if self.is_over {
            return Err(std::io::ErrorKind::FileTooLarge.into());
        }
        self.text.extend_from_slice(part);
        Ok(part.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A template's text without `{# comments #}`.
fn without_comments(text: &str) -> String {
    let mut kept = String::new();
    let mut rest = text;
    while let Some((before, comment)) = rest.split_once("{#") {
        kept.push_str(before);
        rest = comment.split_once("#}").map_or("", |(_, behind)| behind);
    }
    kept.push_str(rest);
    kept
}

/// Writes a value so that HAProxy reads it as a part of one word, whatever it holds.
///
/// Everything that the configuration's parser could take for more than text is written as `\xHH`, which it
/// understands bare and in double quotes, and leaves alone in single quotes (configuration manual, section 2.2,
/// "Quoting and escaping"). So is what changes the order in which the file is read by people. An empty value becomes `""`, so that the
/// words after it do not move.
pub fn escape(value: &str, output: &mut dyn Write) -> std::io::Result<()> {
    if value.is_empty() {
        return output.write_all(b"\"\"");
    }
    let is_plain = |c: char| {
        c.is_ascii_alphanumeric() || "_.:/@,+=%~*?&!^()[]{}|<>;-".contains(c) || !c.is_ascii() && !is_unsafe(c)
    };
    let mut rest = value;
    while let Some(at) = rest.find(|c| !is_plain(c)) {
        let (plain, from) = rest.split_at(at);
        output.write_all(plain.as_bytes())?;
        let end = from.find(is_plain).unwrap_or(from.len());
        let (other, behind) = from.split_at(end);
        for byte in other.bytes() {
            write!(output, "\\x{byte:02x}")?;
        }
        rest = behind;
    }
    output.write_all(rest.as_bytes())
}

/// One rule of the HTTP frontend.
#[derive(Debug, PartialEq, Serialize)]
struct Route<'a> {
    service: &'a str,
    hosts: Vec<&'a str>,
    path: Option<&'a str>,
}

/// The rules in the order in which they must be asked: those with a host before those with none, and of each the
/// longer path first.
fn routes(services: &Services) -> Vec<Route<'_>> {
    let routed =
        |service: &&Arc<Service>| service.mode == Mode::Http && (service.host.is_some() || service.path.is_some());
    let mut routes: Vec<_> = services
        .values()
        .filter(routed)
        .map(|service| Route {
            service: service.name.as_str(),
            hosts: service.host.iter().flat_map(HostNames::iter).collect(),
            path: service.path.as_ref().map(UrlPath::as_str),
        })
        .collect();
    routes.sort_by_key(|route| {
        let length = route.path.map_or(0, str::len);
        (route.hosts.is_empty(), std::cmp::Reverse(length), route.service)
    });
    routes
}

/// The service that takes what no rule does: the option's, else the flat layout's, else the only one that has
/// neither host, path nor listen.
fn default_service<'a>(services: &'a Services, wanted: Option<&str>) -> Option<&'a str> {
    let http = || services.values().filter(|service| service.mode == Mode::Http);
    if let Some(wanted) = wanted {
        return http().map(|service| service.name.as_str()).find(|name| *name == wanted);
    }
    let mut free = http().filter(|s| s.host.is_none() && s.path.is_none() && s.listen.is_none());
    let sole = free.next().filter(|_| free.next().is_none());
    let flat = http().find(|service| service.flat && service.host.is_none());
    flat.or(sole).map(|service| service.name.as_str())
}

fn surroundings_context(surroundings: &Surroundings) -> Context {
    let mut context = Context::new();
    context.insert("haproxy", &surroundings.haproxy);
    let options = surroundings.options.iter().map(|(name, value)| (name.clone(), Value::safe_string(value)));
    context.insert_value("options", Value::from(options.collect::<BTreeMap<_, _>>()));
    context
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn escaped(value: &str) -> String {
        let mut output = Vec::new();
        escape(value, &mut output).unwrap();
        String::from_utf8(output).unwrap()
    }

    fn parse(text: &str) -> Result<Templates, TemplateError> {
        Templates::parse("main.tera", &BTreeMap::from([("main.tera".to_owned(), text.to_owned())]))
    }

    fn render(text: &str, option: &str) -> Result<String, TemplateError> {
        let options = BTreeMap::from([("a".to_owned(), option.to_owned())]);
        parse(text)?.render(&Services::new(), &Surroundings { options, ..Surroundings::default() })
    }

    #[test]
    fn values_are_escaped_and_the_operators_options_are_not() {
        let haproxy = HaproxyContext { version: Some("2.6 # \n".to_owned()), ..HaproxyContext::default() };
        let surroundings = Surroundings { haproxy, options: BTreeMap::from([("a".to_owned(), "b c".to_owned())]) };
        let text = parse("{{ haproxy.version }} {{ options.a }}").unwrap().render(&Services::new(), &surroundings);
        assert_eq!(text.unwrap(), "2.6\\x20\\x23\\x20\\x0a b c\n");
    }

    #[test]
    fn nothing_in_a_value_turns_the_direction_of_what_is_read_in_the_file() {
        assert_eq!(escaped("a\u{202e}b\u{2028}"), "a\\xe2\\x80\\xaeb\\xe2\\x80\\xa8");
        assert_eq!(escaped("Größe-שלום"), "Größe-שלום");
    }

    /// The names in the first column of the table below a heading of docs/template-context.md.
    fn documented(heading: &str) -> Vec<String> {
        let page =
            std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/template-context.md")).unwrap();
        let (_, section) = page.split_once(&format!("{heading}\n")).unwrap_or_else(|| panic!("no {heading:?}"));
        let section = section.split("\n#").next().unwrap();
        let columns =
            section.lines().filter(|line| line.starts_with("| `")).map(|line| line.split('|').nth(1).unwrap());
        let mut names: Vec<String> =
            columns.flat_map(|column| column.split('`').skip(1).step_by(2)).map(str::to_owned).collect();
        names.sort();
        names
    }

    fn fields(of: &impl Serialize, more: &[&str]) -> Vec<String> {
        let serde_json::Value::Object(fields) = serde_json::to_value(of).unwrap() else { panic!("no object") };
        let mut names: Vec<String> = fields.keys().cloned().chain(more.iter().map(|&name| name.to_owned())).collect();
        names.sort();
        names
    }

    #[test]
    fn the_reference_names_each_field_that_a_template_gets() {
        let services = crate::catalog::tests::services_named(&["a"]);
        let service = services.values().next().unwrap().as_ref();
        let route = Route { service: "a", hosts: Vec::new(), path: None };
        assert_eq!(documented("### A service"), fields(service, &["servers"]));
        assert_eq!(documented("### An instance"), fields(service.instances[0].as_ref(), &[]));
        assert_eq!(documented("### A route"), fields(&route, &[]));
        assert_eq!(documented("### haproxy"), fields(&HaproxyContext::default(), &[]));
        let all =
            ["services", "routes", "default_service", "haproxy", "options"].map(|name| format!("{{{{ {name} }}}}"));
        let template = parse(&all.join(" ")).unwrap().render(&services, &Surroundings::default());
        assert!(
            !template.is_err_and(|error| error.to_string().contains("not found")),
            "a name is no part of the context"
        );
        assert_eq!(documented("## What a template gets").len(), all.len());
    }

    #[test]
    fn the_reference_and_the_shipped_templates_head_name_each_option_that_it_reads() {
        let main = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../templates/haproxy.cfg.tera"));
        let templates = crate::templates::load(main).unwrap();
        let read: Vec<&str> = templates.options.names().collect();
        assert!(read.contains(&"http_bind") && read.contains(&"default_service"), "{read:?}");
        assert_eq!(documented("## Options of the shipped template"), read);
        let text = std::fs::read_to_string(main).unwrap();
        let (_, head) = text.split_once("Options of this template, with their defaults:\n").unwrap();
        let head = head.split_once("-#}").unwrap().0;
        let mut of_head: Vec<&str> = head.lines().map(|line| line.split_once('=').unwrap().0.trim()).collect();
        of_head.sort_unstable();
        assert_eq!(of_head, read);
        assert_eq!(templates.unread(["https_bnd"])[0].meant, ["https_bind", "http_bind"]);
    }

    #[test]
    fn a_text_without_end_is_a_bad_template() {
        let loops = format!("{{% for i in range(end=100000) %}}{}{{% endfor %}}", "x".repeat(1000));
        let error = render(&loops, "").unwrap_err().to_string();
        assert!(error.contains("more than 67108864 bytes"), "{error}");
    }

    #[test]
    fn a_template_that_does_not_parse_says_its_file_and_line() {
        let error = parse("global\n{% for x in services %}\n{% endfo %}\n").unwrap_err().to_string();
        assert!(error.starts_with("main.tera line 3, column"), "{error}");
        assert!(!error.contains('\n'), "{error}");
    }

    #[test]
    fn a_template_that_names_what_is_not_there_says_its_file_and_line() {
        let error = render("global\n  {{ nothing.here }}\n", "").unwrap_err().to_string();
        assert!(error.starts_with("main.tera line 2, column"), "{error}");
    }

    #[test]
    fn a_text_always_ends_with_a_line_feed() {
        assert_eq!(render("a", "").unwrap(), "a\n");
        assert_eq!(render("a\n", "").unwrap(), "a\n");
    }

    fn of_service(name: &str) -> Templates {
        let sources = [
            ("main.tera", format!("{{% for service in services %}}{{{{ service.{name} }}}}{{% endfor %}}")),
            ("server.tera", "server {{ instance.server }} {{ service.name }} # w{{ instance.weight }}".to_owned()),
        ];
        Templates::parse("main.tera", &sources.into_iter().map(|(name, text)| (name.to_owned(), text)).collect())
            .unwrap()
    }

    #[test]
    fn lines_are_made_by_their_partial_and_follow_every_change() {
        let templates = of_service("servers");
        let surroundings = Surroundings::default();
        let mut services = crate::catalog::tests::services_named(&["a", "b"]);
        let first = templates.render(&services, &surroundings).unwrap();
        assert_eq!(first, "    server 10.0.0.1_2000 a # w100\n    server 10.0.0.1_2001 b # w100\n");
        let mut a = services.values().next().unwrap().as_ref().clone();
        let other = Instance { weight: 5, ..a.instances[0].as_ref().clone() };
        a.instances = vec![Arc::new(other)];
        services.insert(a.name.clone(), Arc::new(a.clone()));
        let second = templates.render(&services, &surroundings).unwrap();
        assert_eq!(second, first.replacen("w100", "w5", 1));
        a.instances.clear();
        services.insert(a.name.clone(), Arc::new(a));
        let third = templates.render(&services, &surroundings).unwrap();
        assert_eq!(third, "    server 10.0.0.1_2001 b # w100\n");
        assert_eq!(templates.render(&services, &surroundings).unwrap(), third);
    }

    #[test]
    fn a_partial_that_needs_its_loop_is_left_to_it() {
        let sources = [
            (
                "main.tera",
                "{% for s in services %}{% for instance in s.instances %}{% set n = loop.index %}{% include \"server.tera\" %}{% endfor %}{% endfor %}",
            ),
            ("server.tera", "server s{{ n }}"),
        ];
        let sources = sources.map(|(name, text)| (name.to_owned(), text.to_owned())).into_iter().collect();
        let templates = Templates::parse("main.tera", &sources).unwrap();
        let services = crate::catalog::tests::services_named(&["a"]);
        assert_eq!(templates.render(&services, &Surroundings::default()).unwrap(), "server s1\n");
        let service = services.values().next().unwrap();
        assert_eq!(templates.render_server(service, &service.instances[0], &Surroundings::default()), None);
    }

    #[test]
    fn instances_are_there_for_templates_that_go_through_them() {
        let services = crate::catalog::tests::services_named(&["a"]);
        let text = of_service("instances | length").render(&services, &Surroundings::default()).unwrap();
        assert_eq!(text, "1\n");
        assert_eq!(without_comments("a{# instances #}b{#- x -#}c{# open"), "abc");
    }

    proptest! {
        #[test]
        fn no_value_leaves_its_word(value in any::<String>()) {
            let text = escaped(&value);
            prop_assert!(!text.is_empty());
            prop_assert!(value.is_empty() || !text.contains(['"', '\'', ' ', '\t', '\n', '\r', '#', '$', '\0']));
        }
    }
}
