use super::*;

const V2_6: Option<Version> = Some(Version { major: 2, minor: 6 });
const V3_0: Option<Version> = Some(Version { major: 3, minor: 0 });

/// What a plan does, in words: each change or the reason on a line.
fn said(plan: &Plan) -> String {
    match plan {
        Plan::Nothing => "nothing".to_owned(),
        Plan::Reload(reason) => format!("reload: {reason}"),
        Plan::Runtime(changes) => changes.iter().map(change_said).collect::<Vec<_>>().join("\n"),
    }
}

fn change_said(change: &Change) -> String {
    match change {
        Change::Add { id, arguments, checked, dynamic_cookie } => {
            let flags = [(*checked, " (checked)"), (*dynamic_cookie, " (cookie)")];
            let flags: String = flags.iter().filter(|(set, _)| *set).map(|(_, flag)| *flag).collect();
            format!("add {id} {arguments}{flags}")
        }
        Change::Remove { id } => format!("remove {id}"),
        Change::Weight { id, weight } => format!("weight {id} {weight}"),
        Change::Address { id, address, port } => format!("address {id} {address} {port}"),
    }
}

const HEAD: &str = "global\n    maxconn 9\ndefaults\n    mode http\n";

/// The plan from one backend's lines to another's. `head` stands before the backend.
fn backend_plan(head: &str, running: &str, wanted: &str, version: Option<Version>) -> String {
    said(&plan(&format!("{HEAD}{head}backend b\n{running}"), &format!("{HEAD}{head}backend b\n{wanted}"), version))
}

#[test]
fn server_lines_become_changes() {
    let cases = [
        ("", "server a 10.0.0.1:80", "add b/a 10.0.0.1:80"),
        ("", "server a [::1]:80 weight 0 check", "add b/a [::1]:80 weight 0 check (checked)"),
        ("server a 10.0.0.1:80", "", "remove b/a"),
        ("server a host:80 agent-send x disabled", "", "remove b/a"),
        ("server a 10.0.0.1:80", "server a 10.0.0.1:80 weight 5", "weight b/a 5"),
        ("server a 10.0.0.1:80 weight 5", "server a 10.0.0.1:80", "weight b/a 1"),
        ("server a h:80 weight 5 backup", "server a h:80 weight 6 backup", "weight b/a 6"),
        ("server a 10.0.0.1:80 weight 5 check", "server a 10.0.0.1:80 check weight 5", "nothing"),
        ("server a 10.0.0.1:80 weight 1", "server a 10.0.0.1:80", "nothing"),
        ("server a 10.0.0.1:80", "server a 10.0.0.2:81", "address b/a 10.0.0.2 81"),
        ("server a 10.0.0.1:80", "server a [fe80::1]:80", "address b/a fe80::1 80"),
        (
            "server a 10.0.0.1:80 weight 3 check",
            "server a 10.0.0.1:81 weight 4 check",
            "address b/a 10.0.0.1 81\nweight b/a 4",
        ),
        (
            "server a 10.0.0.1:80\nserver b 10.0.0.2:80",
            "server b 10.0.0.2:80\n#x\n\nserver a 10.0.0.1:80 # y",
            "nothing",
        ),
        ("server a 10.0.0.1:80", "server c 10.0.0.1:80", "add b/c 10.0.0.1:80\nremove b/a"),
        ("server a 10.0.0.1:80", "\"server\" 'a' 10.0.0.1:8\\x30", "nothing"),
        // Another server's line may hold anything, as long as it stays.
        ("server x \"$X\" cookie y\n", "server x \"$X\" cookie y\nserver a 10.0.0.1:80", "add b/a 10.0.0.1:80"),
    ];
    for (running, wanted, expected) in cases {
        assert_eq!(backend_plan("", running, wanted, V2_6), expected, "{running:?} -> {wanted:?}");
        assert_eq!(backend_plan("", running, running, V2_6), "nothing");
    }
}

#[test]
fn what_a_server_line_cannot_have_at_run_time_is_a_reload() {
    let cases = [
        "a",
        "a host:80",
        "a 10.0.0.1",
        "a 10.0.0.1:0",
        "a 0.0.0.0:80",
        "a :80",
        "a ::1:80",
        "a 10.0.0.1:+1",
        "a 10.0.0.1:80-90",
        "a ipv4@10.0.0.1:80",
        "a /run/a.sock",
        "a \"${HOST}:80\"",
        "a ${HOST}:80",
        "a;b 10.0.0.1:80",
        "a/b 10.0.0.1:80",
        "a 10.0.0.1:80 sni str(a;b)",
        "a 10.0.0.1:80 sni <<",
        "a 10.0.0.1:80 sni str(\\\\)",
        "a 10.0.0.1:80 sni 'str(a b)'",
        "a 10.0.0.1:80 sni \"\"",
        "a 10.0.0.1:80 sni str(é)",
        "a 10.0.0.1:80 weight 257",
        "a 10.0.0.1:80 weight",
        "a 10.0.0.1:80 weight x",
        "a 10.0.0.1:80 backup",
        "a 10.0.0.1:80 disabled",
        "a 10.0.0.1:80 track c",
        "a 10.0.0.1:80 agent-check agent-port 1",
        "a 10.0.0.1:80 cookie x",
        "a 10.0.0.1:80 no-check",
        "a 10.0.0.1:80 source 10.0.0.9 usesrc clientip",
        "a 10.0.0.1:80 brand-new",
        "a 10.0.0.1:80 \"unclosed",
        "c 10.0.0.1:80",
    ];
    for line in cases {
        let found = backend_plan("", "server c 10.0.0.9:9\n", &format!("server c 10.0.0.9:9\nserver {line}\n"), V2_6);
        assert!(found.starts_with("reload: server b/"), "{line:?}: {found}");
    }
    let long = "sni a ".repeat(40);
    let found = backend_plan("", "", &format!("server a 10.0.0.1:80 {long}"), V2_6);
    assert!(found.contains("too long"), "{found}");
    assert_eq!(backend_plan("", "", "server a 10.0.0.1:80 cookie x", V3_0), "add b/a 10.0.0.1:80 cookie x");
}

#[test]
fn a_server_that_differs_in_more_is_a_reload() {
    for (running, wanted) in [
        ("server a 10.0.0.1:80", "server a 10.0.0.1:80 check"),
        ("server a 10.0.0.1:80 maxconn 1", "server a 10.0.0.1:80 maxconn 2"),
        ("server a host:80", "server a 10.0.0.1:80"),
        ("server a 10.0.0.1:80", "server a host:80"),
        ("server a host:80 resolvers x", "server a host:80 resolvers y"),
        ("server a 10.0.0.1:80 cookie weight", "server a 10.0.0.1:80 cookie x"),
        ("server a 10.0.0.1:80 new-thing weight 1", "server a 10.0.0.1:80 new-thing weight 2"),
        ("server a 10.0.0.1:80 agent-check agent-port 1", ""),
    ] {
        let found = backend_plan("", running, wanted, V2_6);
        assert!(found.starts_with("reload: server b/a"), "{running:?} -> {wanted:?}: {found}");
    }
}

#[test]
fn default_server_lines_are_written_out() {
    let head = "defaults base\n default-server inter 2s\ndefaults d from base\n default-server fall 2 init-addr none\n";
    for (section, expected) in [
        ("", "add b/a 10.0.0.1:80 inter 2s fall 2 maxconn 5 check (checked)"),
        ("default-server rise 1\n", "add b/a 10.0.0.1:80 inter 2s fall 2 rise 1 maxconn 5 check (checked)"),
        (
            "default-server rise 1 #\n\tdefault-server port 9\n",
            "add b/a 10.0.0.1:80 inter 2s fall 2 rise 1 port 9 maxconn 5 check (checked)",
        ),
    ] {
        let wanted = format!("{section}server a 10.0.0.1:80 maxconn 5 check\n");
        assert_eq!(backend_plan(head, section, &wanted, V2_6), expected);
    }
    // They hold for the servers behind them.
    let (running, wanted) =
        ("default-server weight 3\n", "server a 10.0.0.1:80\ndefault-server weight 3\nserver c 10.0.0.1:80\n");
    assert_eq!(backend_plan("", running, wanted, V2_6), "add b/a 10.0.0.1:80\nadd b/c 10.0.0.1:80 weight 3");
    let moved = "default-server weight 3\nserver a 10.0.0.1:80\nserver c 10.0.0.1:80\n";
    assert_eq!(backend_plan("", wanted, moved, V2_6), "weight b/a 3");
    let (running, wanted) =
        ("server a 10.0.0.1:80\ndefault-server check\n", "default-server check\nserver a 10.0.0.1:80\n");
    assert!(backend_plan("", running, wanted, V2_6).starts_with("reload: server b/a"));
    // Their words are held to the same rules.
    for default in ["disabled", "resolvers", "sni \"$X\"", "nonsense", "track x/y"] {
        let section = format!("default-server {default}\n");
        let found = backend_plan("", &section, &format!("{section}server a 10.0.0.1:80\n"), V2_6);
        assert!(found.starts_with("reload: "), "{default}: {found}");
    }
    // A section that names its defaults has those.
    let head = "defaults one\n default-server weight 1\ndefaults two\n default-server weight 2\nlisten l from one\n";
    let (running, wanted) = (format!("{HEAD}{head}"), format!("{HEAD}{head}server a 10.0.0.1:80\n"));
    assert_eq!(said(&plan(&running, &wanted, V2_6)), "add l/a 10.0.0.1:80 weight 1");
}

#[test]
fn what_the_section_says_decides_whether_its_servers_can_change() {
    let good = [
        "balance roundrobin\n",
        "balance random(3)\n",
        "mode tcp\n",
        "balance source\nhash-type consistent sdbm\n",
        "balance hdr(host)\nhash-type consistent\n",
        "balance leastconn\n balance first\n",
        "cookie x insert\n",
        "option external-check\nno option external-check\n",
        "use-server other if TRUE\n",
    ];
    for section in good {
        assert_eq!(
            backend_plan("", section, &format!("{section}server a 10.0.0.1:80 check\n"), V2_6),
            "add b/a 10.0.0.1:80 check (checked)",
            "{section}"
        );
    }
    let bad = [
        "balance static-rr\n",
        "balance source\n",
        "balance uri\nhash-type map-based\n",
        "balance \"$X\"\n",
        "mode log\n",
        "balance brand-new\n",
        "disabled\n",
        "option external-check\n",
        ".if true\nmaxconn 5\n.endif\n",
    ];
    for section in bad {
        let found = backend_plan("", section, &format!("{section}server a 10.0.0.1:80 check\n"), V2_6);
        assert!(found.starts_with("reload: "), "{section}: {found}");
        let found = backend_plan("", section, &format!("{section}# a comment\n"), V2_6);
        assert_eq!(found, "nothing", "{section}");
    }
    for head in ["defaults\nbalance static-rr\n", "defaults\n.if true\nbalance static-rr\n.endif\n"] {
        let found = backend_plan(head, "", "server a 10.0.0.1:80\n", V2_6);
        assert!(found.starts_with("reload: "), "{head}: {found}");
    }
    assert_eq!(
        backend_plan("", "cookie _s insert dynamic\n", "cookie _s insert dynamic\nserver a 10.0.0.1:80\n", V2_6),
        "add b/a 10.0.0.1:80 (cookie)"
    );
}

#[test]
fn a_server_that_another_line_names_stays() {
    let lines =
        ["use-server a if TRUE\n", "http-request deny if { srv_is_up(b/a) }\n", "server t 10.0.0.2:80 track b/a\n"];
    for line in lines {
        let running = format!("{line}server a 10.0.0.1:80\nserver aa 10.0.0.1:80\n");
        let found = backend_plan("", &running, &format!("{line}server aa 10.0.0.1:80\n"), V2_6);
        assert!(found.starts_with("reload: server b/a: another line"), "{line}: {found}");
        let found = backend_plan("", &running, &format!("{line}server a 10.0.0.1:80\n"), V2_6);
        assert_eq!(found, "remove b/aa", "{line}");
    }
}

#[test]
fn everything_that_is_no_server_of_a_backend_is_a_reload_with_its_reason() {
    let text =
        "global\n maxconn 9\nfrontend f\n bind :80\nbackend b\n server a 10.0.0.1:80\npeers p\n server a 10.0.0.1:80\n";
    let cases = [
        ("maxconn 9", "maxconn 10", "global: \"maxconn\" differs (line 2)"),
        ("bind :80\n", "", "frontend f: \"bind\" differs (line 4)"),
        ("bind :80\n", "bind :80\n bind :81\n", "frontend f: \"bind\" differs (line 5)"),
        ("peers p\n server a 10.0.0.1:80", "peers p\n server a 10.0.0.2:80", "peers p: \"server\" differs (line 8)"),
        ("backend b", "backend c", "backend c is new"),
        ("backend b", "listen b", "listen b is new"),
        ("backend b", "backend b from x", "backend b does not stand where it stood, or its first line differs"),
        ("frontend f\n bind :80\n", "", "frontend f is gone"),
        ("backend b", "ring r\nbackend b", "ring r is new"),
        ("peers p", "future p", "future p is new"),
        ("global", "x\nglobal", "the text before all sections: \"x\" differs (line 1)"),
    ];
    for (from, to, expected) in cases {
        let found = plan(text, &text.replacen(from, to, 1), V2_6);
        assert_eq!(said(&found), format!("reload: {expected}"));
    }
    let swapped =
        "global\n maxconn 9\nbackend b\n server a 10.0.0.1:80\nfrontend f\n bind :80\npeers p\n server a 10.0.0.1:80\n";
    assert!(matches!(plan(text, swapped, V2_6), Plan::Reload(Reason::Sections { .. })));
    // A reason has no values: they may be secrets.
    let secret = "userlist u\n user a insecure-password hunter2\n";
    let found = said(&plan(secret, &secret.replace("hunter2", "hunter3"), V2_6));
    assert_eq!(found, "reload: userlist u: \"user\" differs (line 2)");
}

#[test]
fn a_name_that_stands_twice_is_a_reload() {
    let one = "server a 10.0.0.1:80\n";
    let filler: String = (0..9).map(|n| format!("server f{n} 10.0.0.1:80\n")).collect();
    for wanted in [
        format!("{one}{filler}{one}"),
        format!("{one}{one}{filler}"),
        format!("{one}{filler}\"server\" a 10.0.0.2:80\n"),
    ] {
        let found = backend_plan("", &format!("{one}{filler}"), &wanted, V2_6);
        assert!(found.ends_with("stands twice in the section"), "{wanted}: {found}");
    }
    let (running, wanted) = ("backend b\nbackend b\n", "backend b\nserver a 10.0.0.1:80\nbackend b\n");
    assert!(matches!(plan(running, wanted, V2_6), Plan::Reload(Reason::Backend { .. })));
}

#[test]
fn without_a_known_version_every_difference_is_a_reload() {
    let (running, wanted) = ("backend b\n", "backend b\nserver a 10.0.0.1:80\n");
    for version in [None, "2.4.22".parse().ok()] {
        assert_eq!(plan(running, wanted, version), Plan::Reload(Reason::Version(version)));
        assert_eq!(plan(wanted, &wanted.replace(' ', "\t"), version), Plan::Nothing);
    }
}

#[test]
fn versions_are_read() {
    let version = |major, minor| Ok(Version { major, minor });
    for (text, expected) in [("2.6.12", version(2, 6)), ("3.4-dev2", version(3, 4)), ("3.10", version(3, 10))] {
        assert_eq!(text.parse(), expected);
    }
    for text in ["", "2", "2.", ".6", "2-6", "x.y", "99999.1", "2.é"] {
        assert!(text.parse::<Version>().is_err(), "{text}");
    }
}

#[test]
fn one_line_is_added_to_a_running_backend() {
    let running = Parsed::new(
        "defaults\ndefault-server weight 9\nbackend b\n default-server check\n server a 10.0.0.1:80\nbackend c\nserver x 10.0.0.1:80\ndefault-server check\n",
    );
    let change = addition(&running, "b", "  server n 10.0.0.2:80\n", V2_6).unwrap();
    assert_eq!(change_said(&change), "add b/n 10.0.0.2:80 weight 9 check (checked)");
    for (backend, line) in [
        ("b", "server n 10.0.0.2:80\nserver m 10.0.0.2:80"),
        ("b", "balance first"),
        ("b", ""),
        ("b", "server n host:80"),
        ("c", "server n 10.0.0.2:80"),
        ("missing", "server n 10.0.0.2:80"),
    ] {
        assert!(addition(&running, backend, line, V2_6).is_err(), "{backend} {line:?}");
    }
    assert_eq!(addition(&running, "b", "server n 10.0.0.2:80", None), Err(Reason::Version(None)));
}

#[test]
fn one_server_is_removed_from_a_running_backend() {
    let running = Parsed::new(
        "backend b\n server a 10.0.0.1:80\n server t 10.0.0.2:80 on-marked-down shutdown-sessions\n server u 10.0.0.3:80\n \
         server twice 10.0.0.4:80\n server twice 10.0.0.5:80\n use-server u if TRUE\nbackend c\n balance static-rr\n \
         server a 10.0.0.1:80\n",
    );
    let remove = |name: &str, version| {
        let (backend, server) = name.split_once('/').unwrap();
        removal(&running, &ServerId { backend: backend.to_owned(), server: server.to_owned() }, version)
    };
    assert_eq!(change_said(&remove("b/a", V2_6).unwrap()), "remove b/a");
    for name in ["b/t", "b/u", "b/twice", "b/missing", "c/a", "missing/a"] {
        assert!(remove(name, V2_6).is_err(), "{name}");
    }
    assert_eq!(remove("b/a", None), Err(Reason::Version(None)));
}

#[test]
fn a_part_leaves_out_what_differs_in_more_than_servers() {
    let text = |defaults: &str, b: &str, c: &str| {
        Parsed::new(format!(
            "defaults\n{defaults}\nbackend b\n{b}\nbackend c\n{c}\nbackend gone\n server a 10.0.0.1:80\n"
        ))
    };
    let server = |name: &str| format!(" server {name} 10.0.0.1:80");
    let running = text("mode http", &server("a"), &server("a"));
    let said = |wanted: &Parsed| part(&running, wanted, V2_6).changes.iter().map(change_said).collect::<Vec<_>>();
    let all = ["add b/n 10.0.0.1:80", "add c/n 10.0.0.1:80", "remove b/a", "remove c/a"];
    assert_eq!(said(&text("mode http", &server("n"), &server("n"))), all);
    let one = text("mode http", &format!(" balance first\n{}", server("n")), &server("n"));
    assert_eq!(said(&one), ["add c/n 10.0.0.1:80", "remove c/a"]);
    assert_eq!(said(&text("mode tcp", &server("n"), &server("n"))), [""; 0]);
    let mixed = |name: &str| {
        let servers = format!("{}\n default-server backup\n server z 10.0.0.9:80", server(name));
        Parsed::new(format!("backend b\n{servers}\nbackend c\n{}\n", server(name)))
    };
    let changes = part(&mixed("a"), &mixed("n"), V2_6).changes;
    assert_eq!(changes.iter().map(change_said).collect::<Vec<_>>(), ["add c/n 10.0.0.1:80", "remove c/a"]);
    let other = Parsed::new(format!("backend c\n{}\nbackend b\n{}\n", server("n"), server("a")));
    assert_eq!(said(&other), [""; 0]);
}

/// Not a judgement, but the best of 20 times: run it with `--release -- --nocapture`.
#[test]
fn a_plan_for_10_000_servers_prints_its_time() {
    for backends in [1, 1000] {
        let text = |changed: bool| -> String {
            let mut text = String::from(HEAD);
            for backend in 0..backends {
                text.push_str(&format!(
                    "\nbackend service-{backend}\n    mode http\n    balance roundrobin\n    option httpchk\n"
                ));
                for server in 0..10_000 / backends {
                    let last = if changed && backend == backends / 2 && server == 5_000 / backends { 8 } else { 7 };
                    text.push_str(&format!(
                        "    server 10.{backend}.{server}.{last}_8000 10.1.2.{last}:8000 weight 100 check inter 2s fall 2 rise 1\n"
                    ));
                }
            }
            text
        };
        let (running, wanted) = (text(false), text(true));
        let time = |work: &dyn Fn() -> bool| {
            let mut times: Vec<_> = (0..20)
                .map(|_| {
                    let start = std::time::Instant::now();
                    assert!(work());
                    start.elapsed()
                })
                .collect();
            times.sort();
            times[0]
        };
        let is_runtime = |plan: Plan| matches!(&plan, Plan::Runtime(changes) if changes.len() == 2);
        let whole = time(&|| is_runtime(plan(&running, &wanted, V2_6)));
        let read = time(&|| Parsed::new(wanted.as_str()).sections().len() > 1);
        let (old, new) = (Parsed::new(running.as_str()), Parsed::new(wanted.as_str()));
        let between = time(&|| is_runtime(between(&old, &new, V2_6)));
        let backend = format!("service-{}", backends / 2);
        let one = time(&|| addition(&old, &backend, "server new 10.0.0.1:80 weight 100 check inter 2s", V2_6).is_ok());
        println!(
            "{backends} backends: plan {whole:?}, of that reading one text {read:?}, between {between:?}, addition {one:?}"
        );
    }
}
