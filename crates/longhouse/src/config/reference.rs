//! The reference file: `config/longhouse.example.toml`, embedded. It is at once the answer of `config generate` and the
//! list of keys that exist, so that documentation, defaults, environment variables and spelling advice cannot drift
//! apart. Knows nothing of what a key does.

use std::sync::LazyLock;

use toml::Value;

/// The reference file as committed: every key, commented, with its default.
pub(crate) const REFERENCE: &str = include_str!("../../../../config/longhouse.example.toml");

/// One setting of the reference file.
#[derive(Debug)]
pub(crate) struct Key {
    /// Empty for keys above the first section.
    pub(crate) section: String,
    pub(crate) name: String,
    /// The default, or the example where there is no default.
    pub(crate) shown: Value,
    pub(crate) has_default: bool,
    /// A secret: may also be given as `<name>_file`.
    pub(crate) secret: bool,
}

impl Key {
    /// `section.name`, or the bare name above the first section.
    pub(crate) fn path(&self) -> String {
        join(&self.section, &self.name)
    }

    pub(crate) fn variable(&self) -> String {
        variable(&self.section, &self.name)
    }
}

pub(crate) fn join(section: &str, name: &str) -> String {
    if section.is_empty() {
        name.to_owned()
    } else {
        format!("{section}.{name}")
    }
}

/// The environment variable of a key.
pub(crate) fn variable(section: &str, name: &str) -> String {
    let (section, name) = (section.to_ascii_uppercase(), name.to_ascii_uppercase());
    if section.is_empty() {
        format!("LONGHOUSE_{name}")
    } else {
        format!("LONGHOUSE_{section}__{name}")
    }
}

/// Every key that exists, in the order of the reference file.
pub(crate) fn keys() -> &'static [Key] {
    static KEYS: LazyLock<Vec<Key>> = LazyLock::new(|| parse(REFERENCE));
    &KEYS
}

pub(crate) fn find(section: &str, name: &str) -> Option<&'static Key> {
    keys().iter().find(|key| key.section == section && key.name == name)
}

pub(crate) fn sections() -> impl Iterator<Item = &'static str> {
    let mut last = "";
    keys().iter().filter_map(move |key| {
        let new = key.section != last;
        last = &key.section;
        (new && !key.section.is_empty()).then_some(key.section.as_str())
    })
}

/// The closest of `candidates` to `given`, if it is close enough to be a spelling mistake.
pub(crate) fn nearest<'a>(given: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .map(|candidate| {
            (
                strsim::jaro_winkler(&given.to_ascii_lowercase(), &candidate.to_ascii_lowercase()),
                candidate,
            )
        })
        .filter(|(score, _)| *score > 0.75)
        .max_by(|(left, _), (right, _)| left.total_cmp(right))
        .map(|(_, candidate)| candidate)
}

/// The reference file for one server: what `config generate` prints.
pub(crate) fn generate(server_name: &str, data_dir: Option<&str>) -> String {
    let named = REFERENCE.replacen(
        "server_name = \"localhost\"",
        &format!("server_name = {}", Value::from(server_name)),
        1,
    );
    match data_dir {
        Some(directory) => named.replacen(
            "#data_dir = \"./data\"",
            &format!("data_dir = {}", Value::from(directory)),
            1,
        ),
        None => named,
    }
}

fn parse(text: &str) -> Vec<Key> {
    let mut keys = Vec::new();
    let mut section = String::new();
    let mut comment = String::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = name.to_owned();
            comment.clear();
        } else if let Some((name, shown)) = assignment(line) {
            keys.push(Key {
                section: section.clone(),
                has_default: !comment.trim_end().ends_with("Example:"),
                secret: comment.contains(&format!("`{name}_file`")),
                name,
                shown,
            });
        } else if let Some(words) = line.strip_prefix('#') {
            comment.push_str(words);
        } else {
            comment.clear();
        }
    }
    keys
}

/// `key = value` or `#key = value`; prose comments have a space after the `#`.
fn assignment(line: &str) -> Option<(String, Value)> {
    let line = line.strip_prefix('#').unwrap_or(line);
    if !line.starts_with(|c: char| c.is_ascii_lowercase()) {
        return None;
    }
    let (name, value) = line.split_once(" = ")?;
    let mut table: toml::Table = toml::from_str(&format!("value = {value}")).ok()?;
    Some((name.to_owned(), table.remove("value")?))
}

/// The reference file with every default (and no example) switched on, for tests.
#[cfg(test)]
pub(crate) fn uncommented() -> String {
    let mut section = "";
    let mut text = String::new();
    for line in REFERENCE.lines() {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = name;
        }
        let active = match assignment(line) {
            Some((name, _)) => {
                let key = find(section, &name).expect("the same parser listed it");
                if key.has_default {
                    line.trim_start_matches('#')
                } else {
                    ""
                }
            }
            None => line,
        };
        text.push_str(active);
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_lists_keys_in_sections() {
        let name = find("", "server_name").expect("server_name is documented");
        assert_eq!(
            (name.path().as_str(), name.variable().as_str()),
            ("server_name", "LONGHOUSE_SERVER_NAME")
        );
        let format = find("log", "format").expect("log.format is documented");
        assert_eq!(
            (format.path().as_str(), format.variable().as_str()),
            ("log.format", "LONGHOUSE_LOG__FORMAT")
        );
        assert!(format.has_default);
        assert!(!find("listen", "public_url").expect("documented").has_default);
        assert!(sections().any(|section| section == "listen"));
    }

    #[test]
    fn every_line_that_looks_like_a_setting_is_one() {
        for line in REFERENCE
            .lines()
            .filter(|line| line.contains(" = ") && !line.starts_with("# "))
        {
            assert!(assignment(line).is_some(), "not a readable setting: {line}");
        }
    }

    #[test]
    fn spelling_mistakes_find_their_key() {
        for (given, meant) in [
            ("adresses", "addresses"),
            ("fromat", "format"),
            ("max_conections", "max_connections"),
        ] {
            assert_eq!(nearest(given, keys().iter().map(|key| key.name.as_str())), Some(meant));
        }
        assert_eq!(nearest("zzzzzz", keys().iter().map(|key| key.name.as_str())), None);
    }
}
