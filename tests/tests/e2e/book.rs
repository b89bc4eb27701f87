//! docs/ is a book: it builds, each page is in it, and each link leads somewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path, PathBuf};

use e2e::workspace;
use mdbook_driver::MDBook;

/// What a page of the built book has.
struct Page {
    anchors: BTreeSet<String>,
    links: BTreeSet<String>,
}

/// All values that an attribute has in a page of HTML. mdBook writes them in double quotes.
fn attributes(html: &str, name: &str) -> BTreeSet<String> {
    let start = format!(" {name}=\"");
    let values = html.split(&start).skip(1).filter_map(|rest| rest.split('"').next());
    values.map(|value| value.replace("&amp;", "&").replace("%5B", "[").replace("%5D", "]")).collect()
}

/// What stands between the page's own beginning and end, without the theme's navigation.
fn content(html: &str) -> &str {
    let (_, rest) = html.split_once("<main>").unwrap();
    rest.split_once("</main>").unwrap().0
}

fn build(docs: &Path) -> BTreeMap<String, Page> {
    let made = tempfile::tempdir().unwrap();
    let mut book = MDBook::load(docs).unwrap_or_else(|error| panic!("docs/ is no book: {error:#}"));
    book.config.build.build_dir = made.path().to_path_buf();
    book.build().unwrap_or_else(|error| panic!("the book does not build: {error:#}"));
    let files = fs::read_dir(made.path()).unwrap().map(|entry| entry.unwrap().path());
    let pages = files.filter(|path| path.extension().is_some_and(|extension| extension == "html"));
    let is_chapter =
        |path: &PathBuf| !["404.html", "print.html", "toc.html"].map(Path::new).iter().any(|made| path.ends_with(made));
    pages
        .filter(is_chapter)
        .map(|path| {
            let html = fs::read_to_string(&path).unwrap();
            let mut links = attributes(content(&html), "href");
            links.extend(attributes(content(&html), "src"));
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            (name, Page { anchors: attributes(content(&html), "id"), links })
        })
        .collect()
}

/// The path without `.` and `..`.
fn plain(path: &Path) -> PathBuf {
    path.components().fold(PathBuf::new(), |mut plain, part| {
        match part {
            Component::ParentDir => assert!(plain.pop(), "{} leaves the project", path.display()),
            Component::CurDir => {}
            part => plain.push(part),
        }
        plain
    })
}

fn is_elsewhere(link: &str) -> bool {
    ["https://", "http://", "mailto:"].iter().any(|scheme| link.starts_with(scheme))
}

/// The links of a Markdown text outside of its code, as `](target)` has them.
fn links_of_markdown(text: &str) -> BTreeSet<String> {
    let outside = e2e::commands::outside_of_code(text);
    let targets = outside.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    targets.map(str::to_owned).collect()
}

/// Why a link of a file leads nowhere, if so; `from` is the directory that the link is relative to, within the project.
fn broken(pages: &BTreeMap<String, Page>, from: &str, link: &str) -> Option<String> {
    let root = workspace();
    let (path, anchor) = link.split_once('#').map_or((link, None), |(path, anchor)| (path, Some(anchor)));
    let target = plain(&Path::new(from).join(path));
    let is_page =
        target.parent() == Some(Path::new("docs")) && target.extension().is_some_and(|e| e == "html" || e == "md");
    if is_page {
        let stem = target.file_stem().unwrap().to_str().unwrap();
        let stem = if stem == "README" { "index" } else { stem };
        let Some(page) = pages.get(stem) else { return Some(format!("{stem} is no page of the book")) };
        return match anchor {
            Some(anchor) if !page.anchors.contains(anchor) => Some(format!("{stem} has no heading #{anchor}")),
            _ => None,
        };
    }
    // mdBook takes each .md for a page, of its own book or of another one.
    let file = root.join(&target);
    let is_there = file.exists() || file.extension().is_some_and(|e| e == "html") && file.with_extension("md").exists();
    (!is_there).then(|| format!("there is no {}", target.display()))
}

#[test]
fn the_book_builds_and_each_of_its_links_leads_somewhere() {
    let docs = workspace().join("docs");
    let pages = build(&docs);
    let mut wrong = Vec::new();
    let mut count = 0;
    for (name, page) in &pages {
        for link in page.links.iter().filter(|link| !is_elsewhere(link)) {
            count += 1;
            let link = if link.starts_with('#') { format!("{name}.html{link}") } else { link.clone() };
            wrong.extend(broken(&pages, "docs", &link).map(|why| format!("docs/{name}.md: {link}: {why}")));
        }
    }
    for file in ["README.md", "ARCHITECTURE.md", "CHANGELOG.md"] {
        let text = fs::read_to_string(workspace().join(file)).unwrap();
        for link in links_of_markdown(&text).iter().filter(|link| !is_elsewhere(link) && !link.starts_with('#')) {
            count += 1;
            wrong.extend(broken(&pages, "", link).map(|why| format!("{file}: {link}: {why}")));
        }
    }
    println!("{} pages, {count} links within the project", pages.len());
    assert!(wrong.is_empty(), "links that lead nowhere:\n{}", wrong.join("\n"));
    assert!(count > 100, "only {count} links were seen");
}

#[test]
fn each_page_of_docs_is_in_the_books_table_of_contents() {
    let docs = workspace().join("docs");
    let summary = links_of_markdown(&fs::read_to_string(docs.join("SUMMARY.md")).unwrap());
    let files = fs::read_dir(&docs).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let pages: BTreeSet<String> = files.filter(|name| name.ends_with(".md") && name != "SUMMARY.md").collect();
    let forgotten: Vec<&String> = pages.difference(&summary).collect();
    assert!(forgotten.is_empty(), "docs/SUMMARY.md lacks {forgotten:?}");
    let absent: Vec<&String> = summary.difference(&pages).collect();
    assert!(absent.is_empty(), "docs/SUMMARY.md names what is not there: {absent:?}");
}
