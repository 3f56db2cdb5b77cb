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
    /// A character that is not seen, or that changes how what is around it is seen.
    #[error("a new VDI's name cannot contain U+{0:04X}, which does not show as itself")]
    Unseen(u32),
    /// Spaces at an end are not seen either.
    #[error("a new VDI's name cannot begin or end with a space")]
    Space,
    /// Names that mean a directory elsewhere.
    #[error("a new VDI cannot be named {0:?}, which is a directory elsewhere")]
    Dots(String),
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

    /// The name of a VDI that is to be made: one that people can tell from others. What was made under another
    /// name before keeps it.
    pub fn new_vdi(text: &str) -> Result<Self, NameError> {
        let name: Self = text.parse()?;
        if let Some(c) = text.chars().find(|c| is_unseen(*c)) {
            return Err(NameError::Unseen(c.into()));
        }
        if text.starts_with(' ') || text.ends_with(' ') {
            return Err(NameError::Space);
        }
        if matches!(text, "." | "..") {
            return Err(NameError::Dots(text.to_owned()));
        }
        Ok(name)
    }
}

/// Whether a character that is no control character still does not show as itself: Unicode's formats (bidi
/// overrides, joiners, tags), separators other than the plain space, fillers, selectors of variants.
pub fn is_unseen(c: char) -> bool {
    matches!(c,
        '\u{a0}' | '\u{ad}' | '\u{34f}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}'
        | '\u{890}'..='\u{891}' | '\u{8e2}' | '\u{115f}'..='\u{1160}' | '\u{1680}' | '\u{17b4}'..='\u{17b5}'
        | '\u{180b}'..='\u{180f}' | '\u{2000}'..='\u{200f}' | '\u{2028}'..='\u{202f}'
        | '\u{205f}'..='\u{206f}' | '\u{2800}' | '\u{3000}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}'
        | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}' | '\u{110bd}' | '\u{110cd}' | '\u{13430}'..='\u{1343f}'
        | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
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
    fn a_new_name_shows_as_what_it_is() {
        let unseen =
            ["a\u{202e}b", "a\u{200b}", "\u{feff}a", "a\u{a0}b", "\u{e0041}", "a\u{2066}b", "a\u{ad}b"];
        for bad in unseen.into_iter().chain([" ", "  ", " a", "a ", ".", ".."]) {
            assert!(VdiName::new_vdi(bad).is_err(), "{bad:?}");
            assert!(bad.parse::<VdiName>().is_ok(), "{bad:?}: what exists can be named");
        }
        let error = VdiName::new_vdi("a\u{202e}b").expect_err("bidi").to_string();
        assert!(error.contains("U+202E"), "{error}");
        for good in ["a b", "...", ".hidden", "Größe", "диск", "磁盘", "קובץ", "قرص", "a\u{308}"]
        {
            assert_eq!(VdiName::new_vdi(good).expect(good).as_str(), good);
        }
        assert!(VdiName::new_vdi("a/b").is_err());
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
