//! Merges the configuration file, the environment, secrets kept in files and the command line into one TOML table whose
//! values remember where they came from. Refuses keys the reference file does not have. Knows the shape of the
//! configuration only through [`super::reference`].

use std::borrow::Cow;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeTable, DeValue, Deserializer};

use super::error::{ConfigError, Fault, Place};
use super::reference::{self, Key};

/// What is to be read, gathered by the caller so that tests need no process environment.
#[derive(Debug, Default)]
pub(crate) struct Sources {
    pub(crate) file: Option<(PathBuf, String)>,
    pub(crate) environment: Vec<(String, String)>,
    /// Top-level keys set on the command line: argument, key, value.
    pub(crate) arguments: Vec<(&'static str, &'static str, String)>,
}

/// Variables with the common prefix that are not settings.
const NOT_SETTINGS: &[&str] = &["LONGHOUSE_CONFIG"];
const PREFIX: &str = "LONGHOUSE_";

/// A value from outside the file gets a span past the end of the file: the index into `places`.
struct Merge<'a> {
    path: &'a Path,
    text: &'a str,
    places: Vec<Place>,
    faults: Vec<Fault>,
    root: DeTable<'a>,
}

pub(crate) fn read<T: DeserializeOwned>(sources: &Sources) -> Result<(T, Locator), ConfigError> {
    let (path, text) = match &sources.file {
        Some((path, text)) => (path.as_path(), text.as_str()),
        None => (Path::new(""), ""),
    };
    let root = DeTable::parse(text)
        .map_err(|error| file_fault(path, text, &error).advise("TOML is `key = value` under `[section]` lines"))?;
    let mut merge = Merge {
        path,
        text,
        places: Vec::new(),
        faults: Vec::new(),
        root: root.into_inner(),
    };
    merge.refuse_unknown_keys();
    for (name, value) in &sources.environment {
        merge.add_variable(name, value);
    }
    for (argument, key, value) in &sources.arguments {
        let place = merge.place(Place::Argument(argument));
        merge.set("", key, Spanned::new(place, DeValue::String(Cow::Owned(value.clone()))));
    }
    merge.read_secret_files();
    if !merge.faults.is_empty() {
        return Err(ConfigError(merge.faults));
    }
    let locator = merge.locator();
    let whole = Spanned::new(0..text.len(), merge.root);
    let value = T::deserialize(Deserializer::from(whole)).map_err(|error| {
        let (key, place) = locator.find(error.span());
        let cause = match &key {
            Some(key) => format!("`{key}`: {}", error.message()),
            None => error.message().to_owned(),
        };
        let fault = Fault::new(place, cause);
        match key.and_then(|key| example(&key)) {
            Some(example) => fault.advise(example),
            None => fault,
        }
    })?;
    Ok((value, locator))
}

/// Finds the place of a setting after the table itself has been consumed.
#[derive(Debug)]
pub(crate) struct Locator {
    /// Path of each key present, the span of its value, and its place.
    keys: Vec<(String, Range<usize>, Place)>,
}

impl Locator {
    /// Where `path` was set; [`Place::Nowhere`] when it has its default.
    pub(crate) fn place(&self, path: &str) -> Place {
        self.keys
            .iter()
            .find(|(key, ..)| key == path)
            .map_or(Place::Nowhere, |(.., place)| place.clone())
    }

    fn find(&self, span: Option<Range<usize>>) -> (Option<String>, Place) {
        let hit = span.and_then(|span| {
            self.keys
                .iter()
                .find(|(_, value, _)| value.start <= span.start && span.start < value.end.max(value.start + 1))
        });
        match hit {
            Some((key, _, place)) => (Some(key.clone()), place.clone()),
            None => (None, Place::Nowhere),
        }
    }
}

impl<'a> Merge<'a> {
    fn refuse_unknown_keys(&mut self) {
        let mut faults = Vec::new();
        for (key, value) in &self.root {
            let name: &str = key.get_ref();
            let place = Place::in_file(self.path, self.text, key.span().start);
            if reference::find("", name).is_some() {
                continue;
            }
            if !reference::sections().any(|section| section == name) {
                faults.push(unknown_top_level(name, place));
                continue;
            }
            let DeValue::Table(section) = value.get_ref() else {
                let cause = format!("`{name}` is a section, not a key");
                faults.push(
                    Fault::new(place, cause)
                        .advise(format!("write `[{name}]` on a line of its own, its keys below it")),
                );
                continue;
            };
            for key in section.keys() {
                if known(name, key.get_ref()).is_none() {
                    let place = Place::in_file(self.path, self.text, key.span().start);
                    faults.push(unknown_in_section(name, key.get_ref(), place));
                }
            }
        }
        // Faults in the order of the file, not of the alphabet.
        faults.sort_by_key(|fault| match &fault.place {
            Place::File { line, column, .. } => (*line, *column),
            _ => (0, 0),
        });
        self.faults.extend(faults);
    }

    fn add_variable(&mut self, variable: &str, text: &'a str) {
        let Some(name) = variable
            .strip_prefix(PREFIX)
            .filter(|_| !NOT_SETTINGS.contains(&variable))
        else {
            return;
        };
        if text.is_empty() {
            return;
        }
        let lower = name.to_ascii_lowercase();
        let (section, name) = lower.split_once("__").unwrap_or(("", &lower));
        let place = Place::Variable(variable.to_owned());
        let Some((key, is_file)) = known(section, name) else {
            let variables: Vec<String> = reference::keys().iter().map(Key::variable).collect();
            let fault = Fault::new(
                place,
                format!("there is no setting `{}`", reference::join(section, name)),
            );
            let nearest = reference::nearest(variable, variables.iter().map(String::as_str));
            self.faults.push(match nearest {
                Some(nearest) => fault.advise(format!("did you mean {nearest}?")),
                None => fault.advise("`longhouse config generate` lists every setting"),
            });
            return;
        };
        let value = if is_file || key.shown.is_str() {
            DeValue::String(Cow::Owned(text.to_owned()))
        } else {
            match typed(key, text) {
                Ok(value) => value,
                Err(cause) => {
                    self.faults
                        .push(Fault::new(place, format!("`{}`: {cause}", key.path())));
                    return;
                }
            }
        };
        let span = self.place(place);
        self.set(section, name, Spanned::new(span.clone(), relocate(value, &span)));
    }

    /// Replaces each `<key>_file` by the content of that file.
    fn read_secret_files(&mut self) {
        for key in reference::keys().iter().filter(|key| key.secret) {
            let file_key = format!("{}_file", key.name);
            let Some(entry) = self.remove(&key.section, &file_key) else {
                continue;
            };
            let place = self.place_of(entry.span());
            let path = reference::join(&key.section, &file_key);
            let DeValue::String(file) = entry.get_ref() else {
                self.faults
                    .push(Fault::new(place, format!("`{path}` must be the path of a file")));
                continue;
            };
            if self.get(&key.section, &key.name) {
                let cause = format!("`{}` and `{path}` are both set", key.path());
                self.faults.push(Fault::new(place, cause).advise("keep one of them"));
                continue;
            }
            match std::fs::read_to_string(file.as_ref()) {
                Ok(secret) => {
                    let secret = secret.trim_end_matches(['\r', '\n']).to_owned();
                    let value = DeValue::String(Cow::Owned(secret));
                    self.set(&key.section, &key.name, Spanned::new(entry.span(), value));
                }
                Err(error) => self.faults.push(
                    Fault::new(place, format!("`{path}`: cannot read {file}: {error}"))
                        .advise("the file must exist and be readable by the user that runs longhouse"),
                ),
            }
        }
    }

    fn place(&mut self, place: Place) -> Range<usize> {
        self.places.push(place);
        let at = self.text.len() + self.places.len();
        at..at + 1
    }

    fn place_of(&self, span: Range<usize>) -> Place {
        match span.start.checked_sub(self.text.len() + 1) {
            Some(index) => self.places[index].clone(),
            None => Place::in_file(self.path, self.text, span.start),
        }
    }

    fn set(&mut self, section: &str, name: &str, value: Spanned<DeValue<'a>>) {
        let key = |name: &str| Spanned::new(value.span(), Cow::Owned(name.to_owned()));
        if section.is_empty() {
            self.root.remove(name);
            self.root.insert(key(name), value);
            return;
        }
        if !self.root.contains_key(section) {
            self.root
                .insert(key(section), Spanned::new(value.span(), DeValue::Table(DeTable::new())));
        }
        if let Some(DeValue::Table(table)) = self.root.get_mut(section).map(Spanned::get_mut) {
            table.remove(name);
            table.insert(key(name), value);
        }
    }

    fn remove(&mut self, section: &str, name: &str) -> Option<Spanned<DeValue<'a>>> {
        match self.root.get_mut(section)?.get_mut() {
            DeValue::Table(table) => table.remove(name),
            _ => None,
        }
    }

    fn get(&self, section: &str, name: &str) -> bool {
        match self.root.get(section).map(Spanned::get_ref) {
            Some(DeValue::Table(table)) => table.contains_key(name),
            _ => false,
        }
    }

    fn locator(&self) -> Locator {
        let mut keys = Vec::new();
        for (name, value) in &self.root {
            match value.get_ref() {
                // A table where a plain value belongs is that key's fault, not a section.
                DeValue::Table(section) if reference::find("", name.get_ref()).is_none() => {
                    keys.extend(section.iter().map(|(key, value)| {
                        let path = reference::join(name.get_ref(), key.get_ref());
                        (path, value.span(), self.place_of(value.span()))
                    }))
                }
                _ => keys.push((name.get_ref().to_string(), value.span(), self.place_of(value.span()))),
            }
        }
        Locator { keys }
    }
}

/// The key `name`, or the secret whose `<key>_file` form `name` is; the flag says which.
fn known(section: &str, name: &str) -> Option<(&'static Key, bool)> {
    reference::find(section, name).map(|key| (key, false)).or_else(|| {
        let secret = name.strip_suffix("_file")?;
        reference::find(section, secret)
            .filter(|key| key.secret)
            .map(|key| (key, true))
    })
}

fn unknown_top_level(name: &str, place: Place) -> Fault {
    let fault = Fault::new(place, format!("there is no section or top-level key `{name}`"));
    let top_level = reference::sections().chain(
        reference::keys()
            .iter()
            .filter(|key| key.section.is_empty())
            .map(|key| key.name.as_str()),
    );
    if let Some(nearest) = reference::nearest(name, top_level) {
        return fault.advise(format!("did you mean `{nearest}`?"));
    }
    elsewhere(name, "", fault)
}

fn unknown_in_section(section: &str, name: &str, place: Place) -> Fault {
    let fault = Fault::new(place, format!("there is no key `{name}` in section [{section}]"));
    if reference::find("", name).is_some() {
        return fault.advise(format!("`{name}` belongs above the first section"));
    }
    let own = reference::keys().iter().filter(|key| key.section == section);
    if let Some(nearest) = reference::nearest(name, own.map(|key| key.name.as_str())) {
        return fault.advise(format!("did you mean `{nearest}`?"));
    }
    elsewhere(name, section, fault)
}

fn elsewhere(name: &str, not_in: &str, fault: Fault) -> Fault {
    match reference::keys()
        .iter()
        .find(|key| key.name == name && key.section != not_in)
    {
        Some(key) => fault.advise(format!("did you mean `{name}` in section [{}]?", key.section)),
        None => fault.advise("`longhouse config generate` lists every setting"),
    }
}

fn example(path: &str) -> Option<String> {
    let key = reference::keys().iter().find(|key| key.path() == path)?;
    let word = if key.has_default {
        "the default is"
    } else {
        "for example"
    };
    Some(format!("{word} `{} = {}`", key.name, key.shown))
}

/// The text of a variable as the type its key has; a list may be written as in TOML or with commas.
fn typed<'a>(key: &Key, text: &'a str) -> Result<DeValue<'a>, String> {
    if let Ok(value) = DeValue::parse(text) {
        return Ok(value.into_inner());
    }
    if key.shown.is_array() && !text.trim_start().starts_with('[') {
        let items = text
            .split(',')
            .map(|item| Spanned::new(0..0, DeValue::String(Cow::Owned(item.trim().to_owned()))));
        return Ok(DeValue::Array(items.collect()));
    }
    Err(format!(
        "`{text}` cannot be read; write it as in the file, for instance `{}`",
        key.shown
    ))
}

fn file_fault(path: &Path, text: &str, error: &toml::de::Error) -> Fault {
    let place = Place::in_file(path, text, error.span().map_or(0, |span| span.start));
    Fault::new(place, error.message().to_owned())
}

/// Gives a value from outside the file, and all inside it, the span that stands for its place.
fn relocate<'a>(value: DeValue<'a>, span: &Range<usize>) -> DeValue<'a> {
    match value {
        DeValue::Array(items) => DeValue::Array(
            items
                .into_iter()
                .map(|item| Spanned::new(span.clone(), relocate(item.into_inner(), span)))
                .collect(),
        ),
        DeValue::Table(entries) => {
            let mut table = DeTable::new();
            for (key, value) in entries {
                let key = Spanned::new(span.clone(), key.into_inner());
                table.insert(key, Spanned::new(span.clone(), relocate(value.into_inner(), span)));
            }
            DeValue::Table(table)
        }
        plain => plain,
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Default, Deserialize)]
    #[serde(default)]
    struct Whole {
        server_name: String,
        listen: Listen,
        log: Log,
    }

    #[derive(Debug, Default, Deserialize)]
    #[serde(default)]
    struct Listen {
        addresses: Vec<std::net::SocketAddr>,
        max_connections: usize,
    }

    #[derive(Debug, Default, Deserialize)]
    #[serde(default)]
    struct Log {
        format: String,
    }

    fn sources(text: &str, environment: &[(&str, &str)]) -> Sources {
        Sources {
            file: Some((PathBuf::from("l.toml"), text.to_owned())),
            environment: environment
                .iter()
                .map(|(name, value)| (name.to_string(), value.to_string()))
                .collect(),
            arguments: Vec::new(),
        }
    }

    fn fault(text: &str, environment: &[(&str, &str)]) -> String {
        read::<Whole>(&sources(text, environment))
            .expect_err("must be refused")
            .to_string()
    }

    #[test]
    fn layers_win_in_order() {
        let mut sources = sources(
            "server_name = \"file\"\n[log]\nformat = \"text\"\n[listen]\nmax_connections = 1\n",
            &[
                ("LONGHOUSE_SERVER_NAME", "env"),
                ("LONGHOUSE_LOG__FORMAT", "json"),
                ("HOME", "/root"),
            ],
        );
        sources
            .arguments
            .push(("--server-name", "server_name", "argument".to_owned()));
        let (whole, locator) = read::<Whole>(&sources).expect("valid");
        assert_eq!(whole.server_name, "argument");
        assert_eq!(whole.log.format, "json");
        assert_eq!(whole.listen.max_connections, 1);
        assert_eq!(locator.place("server_name"), Place::Argument("--server-name"));
        assert_eq!(
            locator.place("log.format"),
            Place::Variable("LONGHOUSE_LOG__FORMAT".to_owned())
        );
        assert_eq!(locator.place("listen.max_connections").to_string(), "l.toml:5:19");
        assert_eq!(locator.place("listen.addresses"), Place::Nowhere);
    }

    #[test]
    fn lists_in_the_environment_are_toml_or_comma_separated() {
        for text in ["[\"127.0.0.1:1\", \"[::1]:2\"]", "127.0.0.1:1, [::1]:2"] {
            let (whole, _) = read::<Whole>(&sources("", &[("LONGHOUSE_LISTEN__ADDRESSES", text)])).expect("valid");
            assert_eq!(whole.listen.addresses.len(), 2, "{text}");
        }
    }

    #[test]
    fn faults_name_the_place_the_cause_and_the_cure() {
        for (text, environment, expected) in [
            (
                "[log]\nfromat = \"x\"",
                &[][..],
                "l.toml:2:1: there is no key `fromat` in section [log]\n  did you mean `format`?",
            ),
            (
                "[lisen]",
                &[],
                "l.toml:1:2: there is no section or top-level key `lisen`\n  did you mean `listen`?",
            ),
            (
                "log = 1",
                &[],
                "l.toml:1:1: `log` is a section, not a key\n  write `[log]`",
            ),
            (
                "[log]\nserver_name = \"a\"",
                &[],
                "`server_name` belongs above the first section",
            ),
            (
                "[log]\nmax_connections = 1",
                &[],
                "did you mean `max_connections` in section [listen]?",
            ),
            (
                "[log]\nformat = 1",
                &[],
                "l.toml:2:10: `log.format`: invalid type: integer `1`, expected a string",
            ),
            (
                "[listen]\naddresses = [\"a\"]",
                &[],
                "l.toml:2:13: `listen.addresses`: invalid socket address syntax",
            ),
            ("[log\n", &[], "l.toml:1:5: "),
            (
                "server_name = {}",
                &[],
                "l.toml:1:15: `server_name`: invalid type: map, expected a string",
            ),
            (
                "",
                &[("LONGHOUSE_LOG__FROMAT", "x")],
                "environment variable LONGHOUSE_LOG__FROMAT: there is no setting `log.fromat`\n  did you mean LONGHOUSE_LOG__FORMAT?",
            ),
            (
                "",
                &[("LONGHOUSE_LISTEN__MAX_CONNECTIONS", "many")],
                "environment variable LONGHOUSE_LISTEN__MAX_CONNECTIONS: `listen.max_connections`: `many` cannot be read",
            ),
            (
                "",
                &[("LONGHOUSE_LISTEN__ADDRESSES", "[1, 2]")],
                "environment variable LONGHOUSE_LISTEN__ADDRESSES: `listen.addresses`: ",
            ),
        ] {
            let shown = fault(text, environment);
            assert!(shown.contains(expected), "{text}: {shown}");
        }
    }

    #[derive(Debug, Default, Deserialize)]
    #[serde(default)]
    struct WithSecrets {
        database: Database,
    }

    #[derive(Debug, Default, Deserialize)]
    #[serde(default)]
    struct Database {
        url: String,
    }

    #[test]
    fn secrets_come_from_files_or_a_fault_says_why_not() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let at = |name: &str| directory.path().join(name);
        std::fs::write(at("url"), "postgres://a:b@c/d\n").expect("written");
        std::fs::write(at("bytes"), [0xff, 0xfe]).expect("written");
        let from = |name: &str| format!("[database]\nurl_file = {:?}\n", at(name));
        let (whole, locator) = read::<WithSecrets>(&sources(&from("url"), &[])).expect("valid");
        assert_eq!(whole.database.url, "postgres://a:b@c/d");
        assert_eq!(locator.place("database.url").to_string(), "l.toml:2:12");
        let both = format!("{}url = \"sqlite:x\"\n", from("url"));
        for (text, expected) in [
            (from("none"), "l.toml:2:12: `database.url_file`: cannot read "),
            (from("."), "l.toml:2:12: `database.url_file`: cannot read "),
            (from("bytes"), "l.toml:2:12: `database.url_file`: cannot read "),
            (both, "l.toml:2:12: `database.url` and `database.url_file` are both set"),
            (
                "[database]\nurl_file = 5".to_owned(),
                "l.toml:2:12: `database.url_file` must be the path of a file",
            ),
        ] {
            let shown = read::<WithSecrets>(&sources(&text, &[])).expect_err(&text).to_string();
            assert!(shown.contains(expected), "{text}: {shown}");
        }
    }

    #[test]
    fn all_unknown_keys_are_reported_in_file_order() {
        let shown = fault("[log]\nzzz = 1\n[listen]\nyyy = 1\n", &[]);
        let (first, second) = (shown.find("zzz").expect("first"), shown.find("yyy").expect("second"));
        assert!(first < second, "{shown}");
    }
}
