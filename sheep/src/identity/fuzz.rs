//! Fuzz target `identity`: the file of that name.
//!
//! The first byte says whether the rest is the file, or what stands under a head that fits it. What must hold: a
//! file is refused or remembered as it is, and a start counter can be written to it.

use super::*;
use crate::fuzz::Source;
use crate::store::SimFs;

const DIR: &str = "/";

pub(crate) fn run(data: &[u8]) {
    let mut source = Source::new(data);
    let whole = source.flag();
    let body = source.rest();
    let mut text = Vec::new();
    if !whole {
        text.extend(format!("{MAGIC} {VERSION} {:08x}\n", crc32c::crc32c(body)).into_bytes());
    }
    text.extend(body);
    let fs = SimFs::new();
    let file = fs.create(&Path::new(DIR).join(NAME)).expect("new");
    file.write_at(&text, 0).expect("written");
    let Ok(mut opened) = open(&fs) else { return };
    let identity = opened.identity.clone();
    _ = (identity.node(), identity.cluster());
    // No directory is started so often that its counter would not fit the file.
    if identity.start == i64::MAX as u64 {
        return;
    }
    opened.update(|identity| identity.start += 1).expect("written");
    let again = open(&fs).expect("what was written can be read").identity;
    assert_eq!(again, Identity { start: identity.start + 1, ..identity });
}

fn open(fs: &SimFs) -> Result<IdentityFile, IdentityError> {
    IdentityFile::open(Arc::new(fs.clone()), Path::new(DIR))
}
