//! The programs as commands: what they print, how they end, and what they say to wrong flags.

use std::fs;

use e2e::backend::Backend;
use e2e::default_template;
use e2e::discoverer::{TemplateFile, run_discoverer};
use e2e::etcd::Etcd;
use e2e::registrar::run_registrar;
use e2e::within;

use crate::templates::TEMPLATE;

#[tokio::test]
async fn render_prints_the_configuration_and_writes_nothing() {
    within(60, async {
        let etcd = Etcd::start().await;
        let one = Backend::start("one").await;
        etcd.put(&one.flat_key(), "running").await;
        let dir = tempfile::tempdir().unwrap();
        let output = dir.path().join("haproxy.cfg");
        let template = default_template();
        let flags = [
            "render",
            "--etcd",
            &etcd.url(),
            "--template",
            template.to_str().unwrap(),
            "--output",
            output.to_str().unwrap(),
        ];
        let done = run_discoverer(&flags).await;
        assert_eq!(done.code, Some(0), "{done:?}");
        assert!(
            done.stdout.contains(&format!("server 127.0.0.1_{} {}", one.address().port(), one.address())),
            "{}",
            done.stdout
        );
        assert!(done.stdout.ends_with('\n') && !output.exists());
        assert_eq!(run_discoverer(&flags).await.stdout, done.stdout, "same input, same bytes");
    })
    .await;
}

#[tokio::test]
async fn check_says_yes_to_the_template_that_is_shipped() {
    within(60, async {
        let etcd = Etcd::start().await;
        let one = Backend::start("one").await;
        etcd.put(&one.flat_key(), "running").await;
        let template = default_template();
        let done = run_discoverer(&["check", "--etcd", &etcd.url(), "--template", template.to_str().unwrap()]).await;
        assert_eq!(done.code, Some(0), "{done:?}");
    })
    .await;
}

#[tokio::test]
async fn check_names_the_file_and_line_of_a_template_that_does_not_parse() {
    within(60, async {
        let etcd = Etcd::start().await;
        let template = TemplateFile::new(&TEMPLATE.replace("{{ options.http_bind }}", "{{ options.http_bind | | }}"));
        let path = template.path().to_str().unwrap();
        let flags = ["check", "--etcd", &etcd.url(), "--template", path, "--set", "http_bind=127.0.0.1:1"];
        let done = run_discoverer(&flags).await;
        assert_eq!(done.code, Some(1), "{done:?}");
        assert!(done.stderr.contains("haproxy.cfg.tera") && done.stderr.contains("line 10"), "{done:?}");
    })
    .await;
}

#[tokio::test]
async fn check_repeats_haproxys_own_words_about_a_file_it_refuses() {
    within(60, async {
        let etcd = Etcd::start().await;
        let template = TemplateFile::new(&TEMPLATE.replace("mode http", "mode telepathy"));
        let path = template.path().to_str().unwrap();
        let flags = ["check", "--etcd", &etcd.url(), "--template", path, "--set", "http_bind=127.0.0.1:1"];
        let done = run_discoverer(&flags).await;
        assert_eq!(done.code, Some(1), "{done:?}");
        assert!(done.stderr.contains("telepathy"), "{done:?}");
    })
    .await;
}

#[tokio::test]
async fn check_says_when_the_template_is_not_there() {
    within(60, async {
        let etcd = Etcd::start().await;
        let done = run_discoverer(&["check", "--etcd", &etcd.url(), "--template", "/nowhere/x.tera"]).await;
        assert_eq!(done.code, Some(1), "{done:?}");
        assert!(done.stderr.contains("/nowhere/x.tera"), "{done:?}");
    })
    .await;
}

#[tokio::test]
async fn once_writes_the_file_reloads_and_ends() {
    within(60, async {
        let etcd = Etcd::start().await;
        let one = Backend::start("one").await;
        etcd.put(&one.flat_key(), "running").await;
        let dir = tempfile::tempdir().unwrap();
        let (output, told) = (dir.path().join("haproxy.cfg"), dir.path().join("told"));
        let template = default_template();
        let command = format!("cp {} {}", output.display(), told.display());
        let state = dir.path().join("state");
        let flags = [
            "--once",
            "--etcd",
            &etcd.url(),
            "--template",
            template.to_str().unwrap(),
            "--output",
            output.to_str().unwrap(),
            "--reload-command",
            &command,
            "--state-dir",
            state.to_str().unwrap(),
        ];
        let done = run_discoverer(&flags).await;
        assert_eq!(done.code, Some(0), "{done:?}");
        let written = fs::read_to_string(&output).unwrap();
        assert!(written.contains(&one.address().to_string()), "{written}");
        assert_eq!(fs::read_to_string(&told).unwrap(), written, "the reload came after the whole file");
    })
    .await;
}

#[tokio::test]
async fn once_with_a_reload_that_fails_ends_with_1_and_says_why() {
    within(60, async {
        let etcd = Etcd::start().await;
        let one = Backend::start("one").await;
        etcd.put(&one.flat_key(), "running").await;
        let dir = tempfile::tempdir().unwrap();
        let (output, state) = (dir.path().join("haproxy.cfg"), dir.path().join("state"));
        let template = default_template();
        let flags = [
            "--once",
            "--etcd",
            &etcd.url(),
            "--template",
            template.to_str().unwrap(),
            "--output",
            output.to_str().unwrap(),
            "--reload-command",
            "echo no such luck >&2; false",
            "--state-dir",
            state.to_str().unwrap(),
        ];
        let done = run_discoverer(&flags).await;
        assert_eq!(done.code, Some(1), "{done:?}");
        assert!(done.stderr.contains("no such luck"), "{done:?}");
    })
    .await;
}

#[tokio::test]
async fn a_dry_run_writes_nothing_and_reloads_nothing() {
    within(60, async {
        let etcd = Etcd::start().await;
        let one = Backend::start("one").await;
        etcd.put(&one.flat_key(), "running").await;
        let dir = tempfile::tempdir().unwrap();
        let (output, told) = (dir.path().join("haproxy.cfg"), dir.path().join("told"));
        fs::write(&output, "# as it was\n").unwrap();
        let template = default_template();
        let command = format!("touch {}", told.display());
        let state = dir.path().join("state");
        let flags = [
            "--dry-run",
            "--once",
            "--etcd",
            &etcd.url(),
            "--template",
            template.to_str().unwrap(),
            "--output",
            output.to_str().unwrap(),
            "--reload-command",
            &command,
            "--state-dir",
            state.to_str().unwrap(),
        ];
        let done = run_discoverer(&flags).await;
        assert_eq!(done.code, Some(0), "{done:?}");
        assert_eq!(fs::read_to_string(&output).unwrap(), "# as it was\n");
        assert!(!told.exists());
    })
    .await;
}

#[tokio::test]
async fn wrong_flags_of_the_discoverer_are_refused_with_the_right_form() {
    within(60, async {
        let cases: [(&[&str], &str); 8] = [
            (&["--etcd", "http://127.0.0.1:1", "--no-such-flag"], "--no-such-flag"),
            (&["--etcd", "127.0.0.1:2379", "--supervise"], "http://127.0.0.1:2379"),
            (&["--etcd", "ftp://127.0.0.1:2379", "--supervise"], "ftp"),
            (&["--etcd", "", "--supervise"], "--etcd"),
            (&["--etcd", "http://127.0.0.1:1", "--supervise", "--set", "novalue"], "novalue"),
            (&["--etcd", "http://127.0.0.1:1", "--supervise", "--key", "a b\n"], "--key"),
            (&["--etcd", "http://127.0.0.1:1", "--supervise", "--reload-socket", "/x"], "--reload-socket"),
            (&["--etcd", "http://127.0.0.1:1", "--supervise", "--log-format", "xml"], "xml"),
        ];
        for (flags, word) in cases {
            let done = run_discoverer(flags).await;
            assert!(matches!(done.code, Some(1 | 2)), "{flags:?}: {done:?}");
            assert!(done.stderr.contains(word), "{flags:?} without {word:?}: {}", done.stderr);
            assert!(!done.stderr.contains("panicked"), "{flags:?}: {}", done.stderr);
        }
    })
    .await;
}

#[tokio::test]
async fn wrong_flags_of_the_registrar_are_refused_with_the_right_form() {
    within(60, async {
        let cases: [(&[&str], &str); 7] = [
            (&[], "--etcd"),
            (&["--etcd", "http://127.0.0.1:1"], "--port"),
            (&["--etcd", "127.0.0.1:2379", "--port", "8000"], "http://127.0.0.1:2379"),
            (&["--etcd", "http://127.0.0.1:1", "--port", "0"], "--port"),
            (&["--etcd", "http://127.0.0.1:1", "--port", "65536"], "65536"),
            (&["--etcd", "http://127.0.0.1:1", "--port", "8000", "--check", "smell"], "smell"),
            (&["--etcd", "http://127.0.0.1:1", "--port", "8000", "--no-such-flag"], "--no-such-flag"),
        ];
        for (flags, word) in cases {
            let done = run_registrar(flags).await;
            assert!(matches!(done.code, Some(1 | 2)), "{flags:?}: {done:?}");
            assert!(done.stderr.contains(word), "{flags:?} without {word:?}: {}", done.stderr);
            assert!(!done.stderr.contains("panicked"), "{flags:?}: {}", done.stderr);
        }
    })
    .await;
}

#[tokio::test]
async fn help_is_the_reference_of_every_flag_and_its_variable() {
    within(60, async {
        let help = run_discoverer(&["--help"]).await;
        assert_eq!(help.code, Some(0), "{help:?}");
        let flags = [
            "etcd",
            "key",
            "template",
            "output",
            "supervise",
            "reload-socket",
            "reload-pidfile",
            "reload-command",
            "runtime-socket",
            "haproxy",
            "state-dir",
            "set",
            "once",
            "dry-run",
            "admin",
            "admin-token-file",
            "admin-without-token",
        ];
        for flag in flags {
            let variable = format!("DISCOVERER_{}", flag.replace('-', "_").to_uppercase());
            assert!(help.stdout.contains(&format!("--{flag}")), "--{flag} in {}", help.stdout);
            assert!(help.stdout.contains(&variable), "{variable} in {}", help.stdout);
        }
        let help = run_registrar(&["--help"]).await;
        assert_eq!(help.code, Some(0), "{help:?}");
        for flag in ["etcd", "key", "port", "docker", "ip", "container", "check", "fall"] {
            let variable = format!("REGISTRAR_{}", flag.replace('-', "_").to_uppercase());
            assert!(help.stdout.contains(&format!("--{flag}")), "--{flag} in {}", help.stdout);
            assert!(help.stdout.contains(&variable), "{variable} in {}", help.stdout);
        }
    })
    .await;
}

/// The flags in a help text.
fn flags(help: &str) -> Vec<String> {
    let words = help.split(|c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'));
    let mut flags: Vec<String> =
        words.filter(|word| word.starts_with("--") && word.len() > 3).map(str::to_owned).collect();
    flags.sort();
    flags.dedup();
    flags
}

#[tokio::test]
async fn completions_and_manual_pages_have_each_flag_of_the_help() {
    within(60, async {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().display().to_string();
        let discoverer = [run_discoverer(&["--help"]).await, run_discoverer(&["completions", "bash"]).await];
        let registrar = [run_registrar(&["agent", "--help"]).await, run_registrar(&["completions", "bash"]).await];
        assert_eq!(run_discoverer(&["man", &path]).await.code, Some(0));
        assert_eq!(run_registrar(&["man", &path]).await.code, Some(0));
        for ([help, completions], page) in [(discoverer, "discoverer.1"), (registrar, "registrar-agent.1")] {
            let page = fs::read_to_string(directory.path().join(page)).unwrap().replace("\\-", "-");
            let flags = flags(&help.stdout);
            assert!(flags.len() > 15 && flags.contains(&"--print-config".to_owned()), "{flags:?}");
            for flag in flags {
                assert!(completions.stdout.contains(&flag), "{flag} is in no completion");
                assert!(page.contains(&flag), "{flag} is in no manual page");
            }
        }
    })
    .await;
}
