//! A real browser: headless Chromium, driven over WebDriver as a person would use it.
//!
//! It reaches 127.0.0.1 and nothing else, whatever a page asks for.

use std::path::Path;
use std::time::Duration;

use fantoccini::wd::{Capabilities, WebDriverCompatibleCommand};
use fantoccini::{Client, ClientBuilder, Locator};
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::ports::free_port;
use crate::process::{Process, find_program};
use crate::{secs, wait_until};

/// How long a page may take to show what it should, on a machine that is busy with something else.
const SHOWN: Duration = secs(20);

/// A window of a browser. Dropping it ends the browser.
pub struct Browser {
    client: Client,
    _driver: Process,
    _directory: TempDir,
}

impl Browser {
    /// Opens an empty window of this size, in CSS pixels.
    pub async fn start(width: u32, height: u32) -> Browser {
        Browser::start_with(width, height, json!({})).await
    }

    /// A browser in which JavaScript is switched off.
    pub async fn without_scripts(width: u32, height: u32) -> Browser {
        Browser::start_with(width, height, json!({"profile.managed_default_content_settings.javascript": 2})).await
    }

    async fn start_with(width: u32, height: u32, preferences: Value) -> Browser {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let (program, port) = (find_program("chromedriver", "chromium-driver"), free_port());
        let args = [format!("--port={port}"), "--allowed-ips=127.0.0.1".to_owned()];
        let driver = Process::start("chromedriver", &program, &args, &path.join("log"), path);
        let profile = format!("--user-data-dir={}", path.join("profile").display());
        let size = format!("--window-size={width},{height}");
        let args = [
            "--headless=new",
            "--no-sandbox",
            "--disable-dev-shm-usage",
            "--disable-gpu",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--no-proxy-server",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
            &profile,
            &size,
        ];
        let chrome = json!({
            "binary": find_program("chromium", "chromium"),
            "args": args,
            "prefs": preferences,
        });
        let mut capabilities = Capabilities::new();
        capabilities.insert("goog:chromeOptions".to_owned(), chrome);
        capabilities.insert("goog:loggingPrefs".to_owned(), json!({"browser": "ALL"}));
        let url = format!("http://127.0.0.1:{port}");
        let client = wait_until(secs(30), "a browser", async || {
            let builder = ClientBuilder::new(HttpConnector::new()).capabilities(capabilities.clone()).to_owned();
            builder.connect(&url).await.map_err(|error| error.to_string())
        })
        .await;
        let browser = Browser { client, _driver: driver, _directory: directory };
        // A window is never narrower than some 500 pixels: a phone is what the page is told.
        let device = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500});
        browser.devtools("Emulation.setDeviceMetricsOverride", device).await;
        browser
    }

    /// Goes to an address, and waits until the document is there.
    pub async fn open(&self, url: &str) {
        self.client.goto(url).await.unwrap();
    }

    /// Runs a script in each page that is opened from now on, before any of the page's own.
    pub async fn before_pages(&self, script: &str) {
        self.devtools("Page.addScriptToEvaluateOnNewDocument", json!({ "source": script })).await;
    }

    /// Prefers a colour scheme: `light` or `dark`.
    pub async fn prefer(&self, scheme: &str) {
        let features = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.devtools("Emulation.setEmulatedMedia", features).await;
    }

    /// Runs a script in the page, as a person at its console would; gives what it returns.
    pub async fn run(&self, script: &str) -> Value {
        self.client.execute(script, Vec::new()).await.unwrap()
    }

    /// The text that a person sees of each element.
    pub async fn texts(&self, css: &str) -> Vec<String> {
        let script = format!(
            "return [...document.querySelectorAll({})].filter(e => e.checkVisibility()).map(e => e.innerText)",
            Value::from(css)
        );
        serde_json::from_value(self.run(&script).await).unwrap()
    }

    /// All that a person reads on the page; also where scripts are switched off.
    pub async fn text(&self) -> String {
        self.client.find(Locator::Css("body")).await.unwrap().text().await.unwrap()
    }

    /// Waits until the text of one of these elements contains this; gives that text.
    pub async fn wait_for_text(&self, css: &str, text: &str) -> String {
        wait_until(SHOWN, &format!("{text:?} in one of {css}"), async || {
            let texts = self.texts(css).await;
            texts.iter().find(|found| found.contains(text)).cloned().ok_or_else(|| format!("{texts:?}"))
        })
        .await
    }

    /// Waits until the text of none of these elements contains this.
    pub async fn wait_without_text(&self, css: &str, text: &str) {
        wait_until(SHOWN, &format!("no {text:?} in any of {css}"), async || {
            let texts = self.texts(css).await;
            if texts.iter().any(|found| found.contains(text)) { Err(format!("{texts:?}")) } else { Ok(()) }
        })
        .await;
    }

    /// Types into a field, key by key.
    pub async fn write(&self, css: &str, text: &str) {
        self.client.find(Locator::Css(css)).await.unwrap().send_keys(text).await.unwrap();
    }

    /// Clicks on an element.
    pub async fn click(&self, css: &str) {
        self.client.find(Locator::Css(css)).await.unwrap().click().await.unwrap();
    }

    /// What the page has complained of since that was asked last: errors of scripts, and what its policy forbade.
    pub async fn complaints(&self) -> Vec<String> {
        let log = self.client.issue_cmd(Log).await.unwrap();
        let entries = log.as_array().cloned().unwrap_or_default();
        let is_bad = |entry: &&Value| entry["level"] == "SEVERE" || entry["level"] == "WARNING";
        entries.iter().filter(is_bad).map(|entry| entry["message"].to_string()).collect()
    }

    /// Keeps a picture of the window.
    pub async fn picture(&self, file: &Path) {
        std::fs::write(file, self.client.screenshot().await.unwrap()).unwrap();
    }

    async fn devtools(&self, command: &'static str, params: Value) {
        self.client.issue_cmd(DevTools { command, params }).await.unwrap();
    }
}

/// What the browser's console was told (chromedriver's own extension of WebDriver).
#[derive(Debug)]
struct Log;

impl WebDriverCompatibleCommand for Log {
    fn endpoint(&self, base: &url::Url, session: Option<&str>) -> Result<url::Url, url::ParseError> {
        base.join(&format!("session/{}/se/log", session.unwrap_or_default()))
    }

    fn method_and_body(&self, _: &url::Url) -> (http::Method, Option<String>) {
        (http::Method::POST, Some(json!({"type": "browser"}).to_string()))
    }
}

/// A command of the DevTools protocol (chromedriver's own extension of WebDriver).
#[derive(Debug)]
struct DevTools {
    command: &'static str,
    params: Value,
}

impl WebDriverCompatibleCommand for DevTools {
    fn endpoint(&self, base: &url::Url, session: Option<&str>) -> Result<url::Url, url::ParseError> {
        base.join(&format!("session/{}/goog/cdp/execute", session.unwrap_or_default()))
    }

    fn method_and_body(&self, _: &url::Url) -> (http::Method, Option<String>) {
        (http::Method::POST, Some(json!({"cmd": self.command, "params": self.params}).to_string()))
    }
}
