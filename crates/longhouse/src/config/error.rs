//! What is wrong with a configuration, where, and what to do about it. Owns the wording and the place; knows no setting.

use std::fmt;
use std::path::{Path, PathBuf};

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// Line and column count from 1; the column counts characters.
    File {
        path: PathBuf,
        line: usize,
        column: usize,
    },
    Variable(String),
    Argument(&'static str),
    /// The setting is not written anywhere: the fault is in what is missing.
    Nowhere,
}

impl Place {
    pub(crate) fn in_file(path: &Path, text: &str, offset: usize) -> Self {
        let before = &text[..text.floor_char_boundary(offset)];
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        Self::File {
            path: path.to_owned(),
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line, column } => write!(f, "{}:{line}:{column}", path.display()),
            Self::Variable(name) => write!(f, "environment variable {name}"),
            Self::Argument(name) => write!(f, "argument {name}"),
            Self::Nowhere => write!(f, "configuration"),
        }
    }
}

/// One fault. Displayed as `place: cause`, followed by indented advice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) place: Place,
    pub(crate) cause: String,
    pub(crate) advice: Vec<String>,
}

impl Fault {
    pub(crate) fn new(place: Place, cause: impl Into<String>) -> Self {
        Self {
            place,
            cause: cause.into(),
            advice: Vec::new(),
        }
    }

    pub(crate) fn advise(mut self, advice: impl Into<String>) -> Self {
        self.advice.push(advice.into());
        self
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.cause)?;
        for line in &self.advice {
            write!(f, "\n  {line}")?;
        }
        Ok(())
    }
}

/// Everything found wrong in one reading of the configuration.
#[derive(Debug, thiserror::Error)]
pub(crate) struct ConfigError(pub(crate) Vec<Fault>);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.0.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{fault}")?;
        }
        Ok(())
    }
}

impl From<Fault> for ConfigError {
    fn from(fault: Fault) -> Self {
        Self(vec![fault])
    }
}
