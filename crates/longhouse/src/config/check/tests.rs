use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::super::error::ConfigError;
use super::super::reference;
use super::super::{Sources, refuse, source};
use super::*;

fn sources(path: &Path, text: &str) -> Sources {
    Sources {
        file: Some((path.to_owned(), text.to_owned())),
        ..Sources::default()
    }
}

fn read(text: &str) -> Result<Config, ConfigError> {
    Config::read(&sources(&PathBuf::from("l.toml"), text)).map(|(config, _)| config)
}

#[test]
fn faults_that_the_types_permit_are_found_with_their_place_and_cure() {
    for (text, expected) in [
        (
            "server_name = \"https://example.org\"",
            "l.toml:1:15: `https://example.org` is not a server name\n  write a host name",
        ),
        ("server_name = \"\"", "l.toml:1:15: `` is not a server name"),
        ("data_dir = \"\"", "l.toml:1:12: `data_dir` is empty"),
        ("[listen]\naddresses = []", "l.toml:2:13: `listen.addresses` is empty"),
        (
            "[listen]\nmax_connections = 0",
            "l.toml:2:19: `listen.max_connections` must be at least 1",
        ),
        (
            "[listen]\nidle_timeout = \"0s\"",
            "l.toml:2:16: `listen.idle_timeout` is zero",
        ),
        (
            "[listen]\nheader_timeout = \"0s\"",
            "l.toml:2:18: `listen.header_timeout` is zero",
        ),
        ("[listen]\nidle_timeout = \"5 parsecs\"", "is not a duration"),
        ("[listen]\npublic_url = \"https://a/b\"", "must not have a path"),
        ("[listen]\npublic_url = \"a.org\"", "is not an address like"),
        (
            "[listen]\ntrusted_proxies = [\"10.0.0.1/32\", \"0.0.0.0/0\"]",
            "l.toml:2:19: `0.0.0.0/0` trusts everybody",
        ),
        (
            "[listen]\ntrusted_proxies = [\"10.0.0.1/99\"]",
            "l.toml:2:19: `listen.trusted_proxies`",
        ),
        (
            "[tls]\naddresses = [\"0.0.0.0:443\"]",
            "l.toml:2:13: `tls.addresses` needs `tls.certificate` and `tls.private_key`",
        ),
        (
            "[tls]\ncertificate = \"a\"",
            "l.toml:2:15: `tls.certificate` needs `tls.private_key`",
        ),
        (
            "[tls]\nprivate_key = \"a\"",
            "l.toml:2:15: `tls.private_key` needs `tls.certificate`",
        ),
        (
            "[tls]\ncertificate = \"a\"\nprivate_key = \"b\"",
            "l.toml:2:15: `tls.certificate` is set, but `tls.addresses` is empty",
        ),
        (
            "[database]\nurl = \"mysql://u:secret@h/d\"",
            "l.toml:2:7: `database.url` must begin with `sqlite:` or `postgres://`\n  write \"postgres://",
        ),
        (
            "[database]\nurl = \"postgress://u:secret@h/d\"",
            "did you mean `postgres:`?",
        ),
        (
            "[database]\nurl = \"postgres://u:secret@h:port/d\"",
            "l.toml:2:7: cannot open `database.url`: ",
        ),
        (
            "[database]\nmax_connections = 0",
            "l.toml:2:19: `database.max_connections` must be at least 1",
        ),
        (
            "[registration]\nshared_secret = \" \"",
            "l.toml:2:17: `registration.shared_secret` is empty",
        ),
        (
            "[rooms]\ndefault_version = \"99\"",
            "there is no room version `99` here\n  the versions are 10",
        ),
        ("[turn]\nlisten = []", "l.toml:2:10: `turn.listen` is empty"),
        (
            "[turn]\nexternal_ips = [\"0.0.0.0\"]",
            "l.toml:2:16: turn.external_ips: 0.0.0.0 is not",
        ),
        (
            "[turn]\nexternal_ips = [\"203.0.113.7\", \"203.0.113.8\"]",
            "l.toml:2:16: turn.external_ips: 203.0.113.8 is the second IPv4",
        ),
        (
            "[turn]\nexternal_ips = [\"example.org\"]",
            "l.toml:2:16: `turn.external_ips`: ",
        ),
        ("[turn]\nrealm = \"\"", "l.toml:2:9: `turn.realm` must have"),
        ("[turn]\nmax_allocations = 0", "set `turn.enabled = false`"),
        (
            "[turn]\nmax_lifetime = 5",
            "l.toml:2:16: `turn.max_lifetime` of 5 seconds",
        ),
        ("[turn]\nrelay_ports = \"5\"", "is not a range of ports"),
        (
            "[sfu]\nexternal_ips = [\"0.0.0.0\"]",
            "l.toml:2:16: `sfu.external_ips`: 0.0.0.0",
        ),
        (
            "[sfu]\nping_timeout_seconds = 0",
            "l.toml:2:24: `sfu.ping_timeout_seconds`",
        ),
        (
            "[rate_limits]\nlogin = { per_second = nan, burst = 1 }",
            "l.toml:2:9: `rate_limits.login`: `per_second` must be a number above 0",
        ),
        (
            "[rate_limits]\nlogin = { per_second = 1.0, burst = 0 }",
            "and `burst` at least 1",
        ),
        ("[log]\nfilter = \"a=b=c\"", "l.toml:2:10: `log.filter`"),
        (
            "[log]\nformat = \"xml\"",
            "unknown variant `xml`, expected `text` or `json`",
        ),
    ] {
        let shown = read(text).expect_err(text).to_string();
        assert!(shown.contains(expected), "{text}: {shown}");
        assert!(!shown.contains("secret@"), "{text}: shows a password: {shown}");
    }
}

#[test]
fn a_port_wanted_twice_is_a_fault_of_the_key_that_is_written() {
    for (text, expected) in [
        (
            "[listen]\naddresses = [\"127.0.0.1:80\", \"127.0.0.1:80\"]",
            "l.toml:2:13: `listen.addresses` names tcp port 80 twice",
        ),
        (
            "[listen]\naddresses = [\"0.0.0.0:3478\"]",
            "l.toml:2:13: `listen.addresses` and `turn.listen` both want tcp port 3478",
        ),
        (
            "[sfu]\nudp_listen = \"127.0.0.1:3478\"",
            "l.toml:2:14: `turn.listen` and `sfu.udp_listen` both want udp port 3478",
        ),
        (
            "[sfu]\nudp_listen = \"0.0.0.0:49170\"",
            "l.toml:2:14: `turn.relay_ports` and `sfu.udp_listen` both want udp port 49170",
        ),
        (
            "[metrics]\nenabled = true\naddress = \"127.0.0.1:8008\"",
            "l.toml:3:11: `listen.addresses` and `metrics.address` both want tcp port 8008",
        ),
    ] {
        let shown = read(text).expect_err(text).to_string();
        assert!(shown.contains(expected), "{text}: {shown}");
        assert!(shown.contains("another port"), "{text}: {shown}");
    }
    for text in [
        "[listen]\naddresses = [\"0.0.0.0:80\", \"[::]:80\"]",
        "[listen]\naddresses = [\"127.0.0.1:0\", \"127.0.0.1:0\"]",
        "[metrics]\naddress = \"127.0.0.1:8008\"",
        "[turn]\nenabled = false\n[listen]\naddresses = [\"0.0.0.0:3478\"]",
        "[turn]\nlisten = [\"127.0.0.1:3478\", \"127.0.0.2:3478\"]",
        "[sfu]\nudp_listen = \"0.0.0.0:5000\"\ntcp_listen = \"0.0.0.0:5000\"",
    ] {
        read(text).unwrap_or_else(|faults| panic!("{text}: {faults}"));
    }
}

#[test]
fn files_that_are_named_are_looked_at() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let at = |name: &str| directory.path().join(name);
    let made = rcgen::generate_simple_self_signed(["example.org".to_owned()]).expect("made");
    let other = rcgen::generate_simple_self_signed(["example.org".to_owned()]).expect("made");
    fs::write(at("chain"), made.cert.pem()).expect("written");
    fs::write(at("key"), made.signing_key.serialize_pem()).expect("written");
    fs::write(at("other"), other.signing_key.serialize_pem()).expect("written");
    fs::write(at("empty"), "").expect("written");
    let faults = |text: &str| {
        let (config, locator): (Config, _) = source::read(&sources(&at("l.toml"), text)).expect("valid values");
        refuse(files(&config, &locator)).map_err(|faults| faults.to_string())
    };
    let tls = |chain: &str, key: &str| {
        format!(
            "[tls]\naddresses = [\"127.0.0.1:1\"]\ncertificate = {:?}\nprivate_key = {:?}\n",
            at(chain),
            at(key)
        )
    };
    assert_eq!(faults(&tls("chain", "key")), Ok(()));
    for (text, expected) in [
        (tls("none", "key"), "l.toml:3:15: cannot read "),
        (tls("empty", "key"), "l.toml:3:15: "),
        (tls("chain", "none"), "l.toml:4:15: cannot read "),
        (
            tls("chain", "other"),
            "l.toml:4:15: the certificate and its key cannot be used",
        ),
        (format!("data_dir = {:?}", at("key")), "l.toml:1:12: `data_dir`: "),
    ] {
        let shown = faults(&text).expect_err(&text);
        assert!(shown.contains(expected), "{text}: {shown}");
    }
}

/// Values that people write, of every type, right in some places and wrong in all others.
const VALUES: &[&str] = &[
    "true",
    "0",
    "-1",
    "3.5",
    "nan",
    "-inf",
    "9223372036854775807",
    "\"\"",
    "\"x\"",
    "\"localhost\"",
    "\"0.0.0.0\"",
    "\"0.0.0.0:8008\"",
    "\"[::]:0\"",
    "\"::1/0\"",
    "\"1-65535\"",
    "\"99999999999h\"",
    "\"postgres://\"",
    "\"sqlite:\"",
    "\"https://:1\"",
    "\"\\u0000\"",
    "[]",
    "[[]]",
    "[\"\"]",
    "[\"127.0.0.1:0\"]",
    "[\"::\", \"0.0.0.0\"]",
    "{}",
    "{ per_second = -1, burst = 0 }",
    "1979-05-27",
];

/// One change that a person, an editor or a broken disk makes to a file.
#[derive(Debug, Clone)]
enum Change {
    /// Another value for the key of this index.
    Value(prop::sample::Index, prop::sample::Index),
    /// A character at this place.
    Insert(prop::sample::Index, char),
    Remove(prop::sample::Index, usize),
    RepeatLine(prop::sample::Index),
    MoveLine(prop::sample::Index, prop::sample::Index),
}

fn change() -> impl Strategy<Value = Change> {
    let place = any::<prop::sample::Index>;
    prop_oneof![
        4 => (place(), place()).prop_map(|(key, value)| Change::Value(key, value)),
        2 => (place(), prop_oneof![any::<char>(), "[\\[\\]=\"#.{}\n]".prop_map(|text| text.chars().next().unwrap_or('='))])
            .prop_map(|(at, character)| Change::Insert(at, character)),
        2 => (place(), 1..40_usize).prop_map(|(at, count)| Change::Remove(at, count)),
        1 => place().prop_map(Change::RepeatLine),
        1 => (place(), place()).prop_map(|(from, to)| Change::MoveLine(from, to)),
    ]
}

fn changed(text: &str, change: &Change) -> String {
    let mut characters: Vec<char> = text.chars().collect();
    let mut lines: Vec<&str> = text.lines().collect();
    match change {
        Change::Value(key, value) => {
            let keys: Vec<usize> = (0..lines.len()).filter(|line| lines[*line].contains(" = ")).collect();
            if keys.is_empty() {
                return text.to_owned();
            }
            let at = keys[key.index(keys.len())];
            let name = lines[at].split(" = ").next().unwrap_or_default();
            let line = format!("{name} = {}", VALUES[value.index(VALUES.len())]);
            lines[at] = &line;
            lines.join("\n")
        }
        Change::Insert(at, character) => {
            characters.insert(at.index(characters.len() + 1), *character);
            characters.into_iter().collect()
        }
        Change::Remove(at, count) => {
            let start = at.index(characters.len() + 1);
            let end = (start + count).min(characters.len());
            characters.drain(start..end);
            characters.into_iter().collect()
        }
        Change::RepeatLine(at) if !lines.is_empty() => {
            let at = at.index(lines.len());
            lines.insert(at, lines[at]);
            lines.join("\n")
        }
        Change::MoveLine(from, to) if !lines.is_empty() => {
            let line = lines.remove(from.index(lines.len()));
            lines.insert(to.index(lines.len() + 1), line);
            lines.join("\n")
        }
        Change::RepeatLine(_) | Change::MoveLine(..) => text.to_owned(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn a_spoiled_file_is_refused_with_its_place_or_makes_a_usable_configuration(
        changes in prop::collection::vec(change(), 1..4),
    ) {
        let text = changes.iter().fold(reference::uncommented(), |text, change| changed(&text, change));
        match Config::read(&sources(Path::new("l.toml"), &text)) {
            Ok((config, locator)) => {
                // Everything that relies on what was checked.
                config.homeserver(Path::new("data"));
                ports::text(&config);
                files(&config, &locator);
            }
            Err(ConfigError(faults)) => {
                prop_assert!(!faults.is_empty());
                let last_line = text.matches('\n').count() + 1;
                for fault in faults {
                    prop_assert!(!fault.cause.trim().is_empty(), "{fault:?}");
                    let placed = matches!(&fault.place, Place::File { line, column, .. } if *line <= last_line && *column > 0);
                    prop_assert!(placed, "no place: {fault:?}\n{text}");
                }
            }
        }
    }

    #[test]
    fn a_server_name_that_passes_is_one_to_every_part(name in "[a-zA-Z0-9.:\\[\\]%_-]{0,24}|\\PC{0,12}") {
        let text = format!("server_name = {}", toml::Value::from(name));
        if let Ok(config) = read(&text) {
            config.homeserver(Path::new("data"));
            config.public_url();
        }
    }
}
