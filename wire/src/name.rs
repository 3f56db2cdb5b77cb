//! VDI names and export names: what is allowed in them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The longest VDI name, in bytes.
const NAME_LEN_MAX: usize = 255;

/// A VDI's name: 1 to 255 bytes of UTF-8 without `/`, `,`, `@` and control characters.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VdiName(String);

/// Why a text is not a VDI name or not an export name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing there.
    #[error("a VDI name cannot be empty")]
    Empty,
    /// Over [`NAME_LEN_MAX`] bytes.
    #[error("a VDI name has at most {NAME_LEN_MAX} bytes, this one has {0}")]
    TooLong(usize),
    /// A character that means something elsewhere, or that terminals act on.
    #[error("a VDI name cannot contain {0:?}")]
    Character(char),
    /// A `,key=value` part of an export name that is not known or not well formed.
    #[error("{0:?} is not an export option: known are attach=CLIENT:GENERATION and ro=1")]
    Option(String),
    /// An option given twice.
    #[error("export option {0:?} is given twice")]
    Repeated(String),
    /// Snapshots are named after `@`; this release has none.
    #[error("{0:?} names a snapshot, and snapshots are not supported by this release")]
    Snapshot(String),
}

impl VdiName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for VdiName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::try_from(text.to_owned())
    }
}

impl TryFrom<String> for VdiName {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        if text.len() > NAME_LEN_MAX {
            return Err(NameError::TooLong(text.len()));
        }
        match text.chars().find(|c| matches!(c, '/' | ',' | '@') || c.is_control()) {
            Some(c) => Err(NameError::Character(c)),
            None => Ok(Self(text)),
        }
    }
}

impl From<VdiName> for String {
    fn from(name: VdiName) -> Self {
        name.0
    }
}

impl fmt::Display for VdiName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A client's claim to be the only holder of a VDI under its name: a higher generation fences the lower
/// ones of the same client.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Attach {
    /// Who attaches; for CSI the Kubernetes node.
    pub client: String,
    /// Which attachment of that client.
    pub generation: u64,
}

/// What an NBD client asks for: `NAME[@TAG][,key=value…]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportName {
    /// The VDI.
    pub vdi: VdiName,
    /// From `attach=CLIENT:GENERATION`.
    pub attach: Option<Attach>,
    /// From `ro=1`: nothing may be written through it.
    pub read_only: bool,
}

impl FromStr for ExportName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let mut parts = text.split(',');
        let name = parts.next().unwrap_or_default();
        if name.contains('@') {
            return Err(NameError::Snapshot(name.to_owned()));
        }
        let vdi = name.parse()?;
        let mut export = Self { vdi, attach: None, read_only: false };
        for part in parts {
            let bad = || NameError::Option(part.to_owned());
            let (key, value) = part.split_once('=').ok_or_else(bad)?;
            let given = match key {
                "attach" => export.attach.replace(parse_attach(value).ok_or_else(bad)?).is_some(),
                // There is no way to say "no": who wants to write leaves it out.
                "ro" if value == "1" => std::mem::replace(&mut export.read_only, true),
                _ => return Err(bad()),
            };
            if given {
                return Err(NameError::Repeated(key.to_owned()));
            }
        }
        Ok(export)
    }
}

fn parse_attach(value: &str) -> Option<Attach> {
    let (client, generation) = value.rsplit_once(':')?;
    let plain = !client.is_empty()
        && client.len() <= NAME_LEN_MAX
        && !client.chars().any(|c| matches!(c, '/' | '@') || c.is_control());
    let digits = !generation.is_empty() && generation.bytes().all(|b| b.is_ascii_digit());
    let generation = generation.parse().ok()?;
    (plain && digits).then(|| Attach { client: client.to_owned(), generation })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_separators_or_control_characters_are_refused() {
        for bad in ["", "a/b", "a,b", "a@b", "a\0", "a\n", "\u{7f}", "\u{85}", &"x".repeat(256)] {
            assert!(bad.parse::<VdiName>().is_err(), "{bad:?}");
        }
        for good in ["a", "my-disk", "pvc-1.2_3", "ä ö", &"x".repeat(255)] {
            assert_eq!(good.parse::<VdiName>().expect("good").as_str(), good);
        }
    }

    #[test]
    fn an_export_name_may_carry_an_attach_generation() {
        let export: ExportName = "vol,attach=node-1:7".parse().expect("good");
        assert_eq!(export.vdi.as_str(), "vol");
        assert_eq!(export.attach, Some(Attach { client: "node-1".into(), generation: 7 }));
        assert_eq!("vol".parse::<ExportName>().expect("good").attach, None);
        for bad in [
            "vol,",
            "vol,attach=",
            "vol,attach=a",
            "vol,attach=:1",
            "vol,attach=a:",
            "vol,attach=a:-1",
            "vol,attach=a:+1",
            "vol,attach=a:1,attach=a:2",
            "vol,x=1",
            ",attach=a:1",
            "vol@t",
            "vol,attach=a:99999999999999999999",
        ] {
            assert!(bad.parse::<ExportName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_export_name_may_ask_for_a_read_only_export() {
        assert!(!"vol".parse::<ExportName>().expect("good").read_only);
        assert!("vol,ro=1".parse::<ExportName>().expect("good").read_only);
        for both in ["vol,ro=1,attach=a:7", "vol,attach=a:7,ro=1"] {
            let export: ExportName = both.parse().expect("good");
            assert_eq!((export.read_only, export.attach.map(|a| a.generation)), (true, Some(7)), "{both}");
        }
        for bad in ["vol,ro", "vol,ro=", "vol,ro=0", "vol,ro=true", "vol,ro=11", "vol,RO=1", "vol, ro=1"] {
            let error = bad.parse::<ExportName>().expect_err(bad).to_string();
            assert!(error.contains("ro=1"), "{bad}: {error}");
        }
        let twice = "vol,ro=1,ro=1".parse::<ExportName>();
        assert_eq!(twice, Err(NameError::Repeated("ro".to_owned())));
    }
}
