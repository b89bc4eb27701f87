use std::fs;
use std::os::unix::ffi::OsStringExt;

use clap::builder::BoolishValueParser;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use tempfile::TempDir;

use super::*;

const RULES: Rules = Rules {
    // A variable that is set in every test's environment stands for those of the program.
    variable: "TEST_CONFIG",
    lists: &["etcd"],
    tables: &["set"],
    exclusive: &[&["supervise", "reload-socket"]],
    at_once: &["ttl"],
    lenient: &["peek"],
};

fn command() -> Command {
    let arg = |name: &'static str, variable: &'static str| Arg::new(name).long(name).env(variable);
    let switch =
        |name, variable| arg(name, variable).action(ArgAction::SetTrue).value_parser(BoolishValueParser::new());
    let run = Command::new("run")
        .arg(arg("etcd", "TEST_ETCD").required(true))
        .arg(arg("ttl", "TEST_TTL").default_value("20s"))
        .arg(arg("rise", "TEST_RISE").default_value("1").value_parser(value_parser!(u32).range(1..=9)))
        .arg(arg("check", "TEST_CHECK").value_parser(["http", "tcp"]))
        .arg(arg("set", "TEST_SET").action(ArgAction::Append).value_delimiter('\n'))
        .arg(arg("tags", "TEST_TAGS").action(ArgAction::Append).value_delimiter(','))
        .arg(arg("network", "TEST_NETWORK").requires("internal"))
        .arg(switch("internal", "TEST_INTERNAL"))
        .arg(switch("supervise", "TEST_SUPERVISE"))
        .arg(arg("reload-socket", "TEST_RELOAD_SOCKET"))
        .arg(arg("token-file", "TEST_TOKEN_FILE").conflicts_with("open"))
        .arg(switch("open", "TEST_OPEN"))
        // Set in every test, by cargo.
        .arg(arg("crate", "CARGO_PKG_NAME"))
        .arg(Arg::new("name"));
    let stop = Command::new("stop").arg(arg("timeout", "TEST_DRAIN_TIMEOUT")).arg(arg("json", "TEST_JSON"));
    with_flags(Command::new("test").subcommand(run).subcommand(stop), &RULES)
}

struct File(TempDir);

impl File {
    fn new(text: impl AsRef<[u8]>) -> Self {
        let file = Self(tempfile::tempdir().unwrap());
        fs::write(file.path(), text).unwrap();
        file
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("test.toml")
    }

    fn source(&self, args: &[&str]) -> Source {
        let config = format!("--config={}", self.path().display());
        Source::new(command(), &RULES, ["test", "run", &config].into_iter().chain(args.iter().copied()))
    }

    fn read(&self, args: &[&str]) -> Result<Loaded, String> {
        self.source(args).read().map_err(|error| error.to_string())
    }
}

fn values(loaded: &Loaded, key: &str) -> Vec<String> {
    let setting = loaded.settings.iter().find(|setting| setting.key == key).unwrap();
    setting.values.iter().flatten().map(|value| value.to_string_lossy().into_owned()).collect()
}

#[test]
fn a_flag_wins_over_the_variable_that_over_the_file_and_that_over_the_default() {
    let file = File::new("etcd = \"e\"\nrise = 2\npkg-name = \"of the file\"\n");
    let loaded = file.read(&["--rise", "3"]).unwrap();
    assert_eq!((values(&loaded, "rise"), values(&loaded, "ttl")), (vec!["3".to_owned()], vec!["20s".to_owned()]));
    assert_eq!(loaded.origin("rise"), Some(&Origin::Flag("rise".to_owned())));
    assert_eq!(loaded.origin("etcd"), Some(&Origin::Line(1)));
    assert_eq!(loaded.origin("ttl"), Some(&Origin::Default));
    assert_eq!(values(&loaded, "pkg-name"), ["observe"]);
    assert_eq!(loaded.origin("pkg-name"), Some(&Origin::Variable("CARGO_PKG_NAME".to_owned())));
    assert_eq!(values(&file.read(&[]).unwrap(), "rise"), ["2"]);
    assert_eq!(values(&file.read(&["--crate", "x"]).unwrap(), "pkg-name"), ["x"]);
}

#[test]
fn values_of_every_kind_are_read() {
    let cases = [
        ("etcd = [\"http://a:1\", \"http://b:1\"]", "etcd", vec!["http://a:1,http://b:1"]),
        ("tags = [\"a\", \"b\"]", "tags", vec!["a", "b"]),
        ("tags = \"a,b\"", "tags", vec!["a", "b"]),
        ("tags = []", "tags", vec![]),
        ("set = [\"a=b\", \"c=d=e\"]", "set", vec!["a=b", "c=d=e"]),
        ("[set]\na = \"x y\"\nb = 5\nc = true", "set", vec!["a=x y", "b=5", "c=true"]),
        ("internal = true\nnetwork = \"n\"", "network", vec!["n"]),
        ("internal = true", "internal", vec!["true"]),
        ("internal = false", "internal", vec!["false"]),
        ("rise = 0x9", "rise", vec!["9"]),
        ("network = \"--ttl\"\ninternal = true", "network", vec!["--ttl"]),
        ("\u{feff}ttl = '5s'\r\n", "ttl", vec!["5s"]),
    ];
    for (text, key, expected) in cases {
        let file = File::new(text);
        let loaded = file.read(if key == "etcd" { &[] } else { &["--etcd", "e"] });
        assert_eq!(values(&loaded.unwrap_or_else(|error| panic!("{text}: {error}")), key), expected, "{text}");
    }
}

#[test]
fn one_file_serves_all_subcommands_and_the_key_is_that_of_the_variable() {
    let file = File::new("drain-timeout = \"9s\"\netcd = \"e\"\njson = \"j\"\n");
    file.read(&[]).unwrap();
    let config = format!("--config={}", file.path().display());
    let loaded = Source::new(command(), &RULES, ["test", "stop", &config]).read().unwrap();
    assert_eq!(loaded.matches.subcommand_matches("stop").unwrap().get_one::<String>("timeout").unwrap(), "9s");
}

#[test]
fn what_is_wrong_is_named_with_the_line_and_the_key_and_no_value() {
    let cases = [
        ("\n# a comment\nzigzag = 1", "line 3: unknown key zigzag; --print-config shows all keys"),
        ("etdc = \"http://u:hunter2@h\"", "line 1: unknown key etdc; is etcd meant?"),
        ("reload_socket = \"x\"", "is reload-socket meant?"),
        ("TTL = \"x\"", "is ttl meant?"),
        ("config = \"x\"", "for the command line only"),
        ("ttl = 20", "line 1: ttl: the value must be a text in quotes"),
        ("rise = \"3\"", "rise: the value must be a whole number"),
        ("rise = 3.5", "rise: the value must be a whole number"),
        ("rise = 99", "line 1: rise: 99 is not in 1..=9"),
        ("rise = 99999999999999999999999999", "rise: number too large"),
        ("internal = \"true\"", "internal: the value must be true or false"),
        ("check = \"hunter2\"", "line 1: check: write one of http, tcp"),
        ("ttl = [\"a\"]", "ttl: the value must be a text"),
        ("tags = [[\"a\"]]", "tags: the value must be an array"),
        ("[tags]\na = 1", "tags: the value must be an array"),
        ("set = {a = [1]}", "set: the value must be a table"),
        ("ttl = 1979-05-27", "ttl: the value must be"),
        ("ttl = \"\\u0000\"", "ttl: the value must be"),
        ("[run]\nttl = \"5s\"", "unknown key run"),
        ("ttl = \"hunter2", "line 1: this is no TOML"),
        ("a = 1\nttl = hunter2", "line 2: this is no TOML"),
        ("ttl = \"1s\"\nttl = \"hunter2\"", "line 2: this is no TOML"),
        ("\"a\\nb\\u001b\" = 1", "unknown key a\\nb\\u{1b}"),
        ("token-file = \"x\"\nopen = true", "it cannot be given together with"),
    ];
    for (text, expected) in cases {
        let error = File::new(text).read(&["--etcd", "e"]).unwrap_err();
        assert!(error.contains(expected), "{text}: {error}");
        assert!(!error.contains("hunter2") && error.lines().count() == 1, "{text}: {error}");
    }
    let nested = format!("ttl = {}1{}", "[".repeat(100_000), "]".repeat(100_000));
    assert!(File::new(nested).read(&["--etcd", "e"]).unwrap_err().contains("no TOML"));
}

#[test]
fn what_is_chosen_on_the_command_line_puts_the_other_choices_of_the_file_out_of_force() {
    let supervised = File::new("etcd = \"e\"\nsupervise = true\nopen = true\n");
    let loaded = supervised.read(&["--reload-socket", "s", "--token-file", "t"]).unwrap();
    assert_eq!((values(&loaded, "supervise"), values(&loaded, "open")), (vec!["false".into()], vec!["false".into()]));
    assert_eq!(values(&loaded, "token-file"), ["t"]);
    let other = File::new("etcd = \"e\"\nreload-socket = \"s\"\ntoken-file = \"t\"\n");
    let loaded = other.read(&["--supervise", "--open"]).unwrap();
    assert!(values(&loaded, "reload-socket").is_empty() && values(&loaded, "token-file").is_empty());
    assert_eq!(values(&other.read(&[]).unwrap(), "reload-socket"), ["s"]);
    // What a flag needs may be in the file.
    let internal = File::new("etcd = \"e\"\ninternal = true\n");
    assert_eq!(values(&internal.read(&["--network", "n"]).unwrap(), "network"), ["n"]);
    let alone = File::new("etcd = \"e\"\nnetwork = \"n\"\n").read(&[]).unwrap_err();
    assert!(alone.contains("--internal"), "{alone}");
}

#[test]
fn a_hostile_file_holds_up_nothing_and_is_named() {
    let file = File::new("");
    let expect = |words: &str| {
        let error = file.read(&["--etcd", "e"]).unwrap_err();
        assert!(error.starts_with("--config ") && error.contains(words), "{error}");
    };
    fs::write(file.path(), vec![b'#'; 1024 * 1024 + 1]).unwrap();
    expect("larger than 1 MiB");
    fs::write(file.path(), b"# good\nttl = \"\xff\"").unwrap();
    expect("line 2 is not UTF-8");
    fs::remove_file(file.path()).unwrap();
    expect("there is no such file");
    mkfifo(&file.path(), Mode::S_IRWXU).unwrap();
    expect("no regular file");
    fs::remove_file(file.path()).unwrap();
    fs::create_dir(file.path()).unwrap();
    expect("no regular file");
    let zero = Source::new(command(), &RULES, ["test", "run", "--config", "/dev/zero"]).read().unwrap_err();
    assert!(zero.to_string().contains("no regular file"), "{zero}");
}

#[test]
fn what_is_printed_is_a_file_that_gives_the_same() {
    let text = "etcd = \"http://a:1\"\nttl = \"5\\\"s\\\\ # \\n é\\u202e\"\ntags = [\"a b\", \"c\"]\ninternal = true\n[set]\na = \"x=y\"\n";
    let loaded = File::new(text).read(&["--rise", "7", "--print-config"]).unwrap();
    let printed = loaded.printed().unwrap();
    assert!(
        printed.contains("rise = 7  # --rise\n") && printed.contains("pkg-name = \"observe\"  # environment"),
        "{printed}"
    );
    assert!(printed.contains("test.toml line 1\n") && printed.contains("# check is not set\n"), "{printed}");
    let again = File::new(&printed).read(&["--print-config"]).unwrap();
    assert!(again.changed(&loaded).is_empty(), "{printed}");
    assert_eq!(again.settings.len(), loaded.settings.len());
    assert!(loaded.settings.len() > 10 && File::new(text).read(&[]).unwrap().printed().is_none());
}

#[test]
fn a_password_is_not_printed_and_what_stands_for_it_is_no_value() {
    for url in
        ["http://u:hunter2@h:1", "http://a:1,https://u:hunter2@h:1/", "http://hunter2@h", "http://u:hun/hunter2@h"]
    {
        let loaded = File::new(format!("etcd = \"{url}\"")).read(&["--print-config"]).unwrap();
        let printed = loaded.printed().unwrap();
        assert!(!printed.contains("hunter2") && printed.contains("# etcd = \"http"), "{printed}");
        // The password is missing then, and not wrong.
        let error = File::new(&printed).read(&[]).unwrap_err();
        assert!(error.contains("--etcd"), "{error}");
    }
    assert!(!print::is_secret("http://a:1/x,b@c"));
}

#[test]
fn what_is_no_text_is_printed_as_a_comment() {
    let network = OsString::from_vec(b"--network=\xff".to_vec());
    let args = ["test", "run", "--etcd=e", "--internal", "--print-config"].map(OsString::from).into_iter();
    let command = command().mut_subcommand("run", |run| {
        run.mut_arg("network", |arg| arg.value_parser(clap::builder::OsStringValueParser::new()))
    });
    let loaded = Source::new(command, &RULES, args.chain([network])).read().unwrap();
    assert!(loaded.printed().unwrap().contains("# network is not UTF-8"));
}

#[test]
fn help_and_wrong_flags_come_before_the_file() {
    let file = File::new("nonsense");
    assert!(file.read(&["--help"]).unwrap_err().contains("--print-config"));
    assert!(File::new("etcd = \"e\"").read(&["--nonsense"]).unwrap_err().contains("--nonsense"));
}

#[test]
fn a_password_in_a_value_is_not_quoted() {
    let source =
        |args: &[&str]| Source::new(command(), &RULES, ["test", "run"].into_iter().chain(args.iter().copied()));
    for args in [
        &["--etcd", "e", "--rise", "http://u:secret@h:2379"][..],
        &["--etcd", "e", "--check", "http://u:sec@ret@h"],
        &["--etcd", "e", "--chek=http://u:secret@h"],
        &["--etcd", "e", "name", "http://u:secret@h"],
        &["--etcd", "e", "-zhttp://u:secret@h"],
        &["--etcd", "e", "--http://u:secret@h"],
        &["--etcd", "e", "--internal=http://u:secret@h"],
    ] {
        let said = source(args).read().unwrap_err().to_string();
        assert!(!said.contains("secret") && !said.contains("sec@") && !said.is_empty(), "{args:?}: {said}");
    }
}

#[test]
fn a_command_that_must_answer_goes_on_without_a_file_that_cannot_be_used() {
    let command = with_flags(
        Command::new("test")
            .arg(Arg::new("ttl").long("ttl").env("TEST_TTL").default_value("20s").global(true))
            .subcommand(Command::new("peek"))
            .subcommand(Command::new("other")),
        &RULES,
    );
    let file = File::new("ttl = \n");
    let config = format!("--config={}", file.path().display());
    let read = |name: &str| Source::new(command.clone(), &RULES, ["test", name, &config, "--ttl", "7s"]).read();
    assert_eq!(values(&read("peek").unwrap(), "ttl"), ["7s"]);
    assert!(matches!(read("other"), Err(ConfigError::Line { .. })));
}
